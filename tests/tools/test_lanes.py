"""Steps in lanes, as the tour runs them: real scripts of tools/ in worker processes."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.runs import read_results

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from lanes import Lanes, Step, open_lanes


def subset(name: str, data: Path, out: Path, fraction: str = "0.5") -> Step:
    words = ("--data", str(data), "--fraction", fraction, "--out", str(out))
    return Step(name=name, title=f"a list, {name}", tool="make_subset", words=words, out=out)


def run(folder: Path, steps: list[Step], num_lanes: int = 1) -> Lanes:
    with open_lanes(folder, num_lanes, lambda step: f"made {step.out.name}") as opened:
        opened.run(steps)
    return opened


def test_steps_of_two_lanes_run_and_each_leaves_a_record_and_one_line(
    unlabelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = [subset(name, unlabelled, tmp_path / f"{name}.txt") for name in ("one", "two", "three")]
    lanes = run(tmp_path / "steps", steps, num_lanes=2)
    assert all(step.out.exists() for step in steps)
    assert {step.name for step in lanes.steps} == {"one", "two", "three"} and not lanes.resumed
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert sorted(line.split("  ")[0] for line in lines) == ["a list, one", "a list, three", "a list, two"]
    assert all(line.endswith(f"made {line.split('  ')[0].removeprefix('a list, ')}.txt") for line in lines)
    for step in steps:
        record = json.loads((tmp_path / "steps" / f"{step.name}.json").read_text(encoding="utf-8"))
        assert record["command"] == step.command and record["seconds"] == lanes.seconds_of(step) > 0
        assert "48 images, fingerprint" in (tmp_path / "steps" / f"{step.name}.log").read_text(encoding="utf-8")


def test_a_step_waits_for_what_it_needs(unlabelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second lane is free from the start, but the step left for it reads the output of the first one."""
    first = subset("first", unlabelled, tmp_path / "first.txt")
    second = replace(subset("second", first.out, tmp_path / "second.txt"), needs=("first",))
    run(tmp_path / "steps", [second, first], num_lanes=2)
    assert [line.split("  ")[0] for line in capfd.readouterr().err.splitlines()] == ["a list, first", "a list, second"]
    assert second.out.read_text(encoding="utf-8").startswith("# 24 images of ")


def test_a_finished_step_is_kept_and_runs_again_if_its_output_is_gone(unlabelled: Path, tmp_path: Path) -> None:
    step = subset("one", unlabelled, tmp_path / "one.txt")
    run(tmp_path / "steps", [step])
    step.out.write_text("kept")
    assert run(tmp_path / "steps", [step]).resumed
    assert step.out.read_text() == "kept"
    step.out.unlink()
    assert not run(tmp_path / "steps", [step]).resumed
    assert step.out.read_text(encoding="utf-8").startswith("# 48 images of ")


def test_an_output_of_another_command_or_other_images_is_refused_and_kept(unlabelled: Path, tmp_path: Path) -> None:
    """Also if the step was stopped before it finished."""
    step = subset("one", unlabelled, tmp_path / "one.txt")
    run(tmp_path / "steps", [step])
    record, made = tmp_path / "steps" / "one.json", step.out.read_bytes()
    stopped = json.loads(record.read_text())
    del stopped["seconds"]
    other = subset("one", unlabelled, tmp_path / "one.txt", fraction="0.25")
    for kept in (record.read_text(), json.dumps(stopped)):
        record.write_text(kept)
        with pytest.raises(ValueError, match=r"a list, one: .*one\.txt was started by another command: choose"):
            run(tmp_path / "steps", [other])
        with pytest.raises(ValueError, match=r"a list, one: .*one\.txt was started on other images: choose"):
            run(tmp_path / "steps", [replace(step, inputs="changed")])
        assert (record.read_text(), step.out.read_bytes()) == (kept, made)


def test_an_output_made_from_an_earlier_output_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    first = subset("first", unlabelled, tmp_path / "first.txt")
    second = replace(subset("second", unlabelled, tmp_path / "second.txt"), needs=("first",))
    run(tmp_path / "steps", [first, second])
    first.out.unlink()
    with pytest.raises(ValueError, match=r"second\.txt was made from an earlier first: remove it"):
        run(tmp_path / "steps", [first, second])


def test_a_complete_output_with_an_unfinished_record_is_kept(unlabelled: Path, tmp_path: Path) -> None:
    """A kill between the two writes: make_subset.py writes atomically, and refuses an existing output."""
    step = subset("one", unlabelled, tmp_path / "one.txt")
    run(tmp_path / "steps", [step])
    record = tmp_path / "steps" / "one.json"
    finished = json.loads(record.read_text())
    record.write_text(json.dumps({"command": finished["command"], "inputs": finished["inputs"]}))
    step.out.write_text("kept")
    lanes = run(tmp_path / "steps", [step])
    assert lanes.resumed and lanes.seconds_of(step) >= 0 and step.out.read_text() == "kept"


def test_an_output_that_no_tour_made_is_refused_by_the_tool_itself(unlabelled: Path, tmp_path: Path) -> None:
    step = subset("one", unlabelled, tmp_path / "one.txt")
    step.out.write_text("mine")
    with pytest.raises(ValueError, match=r"one\.txt exists"):
        run(tmp_path / "steps", [step])
    assert step.out.read_text() == "mine"


def test_a_worker_that_dies_ends_in_one_sentence(unlabelled: Path, tmp_path: Path) -> None:
    step = subset("one", unlabelled, tmp_path / "one.txt")
    with (
        open_lanes(tmp_path / "steps", 1, lambda step: "") as lanes,
        pytest.raises(ValueError, match=r"a worker process died, perhaps out of memory: see .*steps"),
    ):
        lanes.processes[0].kill()
        lanes.processes[0].join()
        lanes.run([step])


def test_a_failed_step_stops_all_with_its_sentence_and_the_path_of_its_log(unlabelled: Path, tmp_path: Path) -> None:
    bad = subset("bad", unlabelled, tmp_path / "bad.txt", fraction="2")
    after = subset("after", unlabelled, tmp_path / "after.txt")
    sentence = r"a list, bad: --fraction is 2\.0: it must lie in \(0, 1\] \(log: .*steps/bad\.log\)"
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "steps", [bad, after])
    assert not after.out.exists()
    unknown = Step(name="x", title="x", tool="no_such_tool", words=(), out=tmp_path / "x")
    with pytest.raises(ValueError, match="x: failed with ModuleNotFoundError: No module named 'no_such_to"):
        run(tmp_path / "steps", [unknown])
    assert "Traceback" in (tmp_path / "steps" / "x.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_step_that_was_stopped_is_resumed(unlabelled: Path, tmp_path: Path) -> None:
    """Its run directory is resumed, which its command alone would refuse: no training step is repeated."""
    out = tmp_path / "run"
    words = ("smoke", "--data", str(unlabelled), "--out", str(out))
    step = Step(name="student", title="student", tool="distill", words=words, out=out)
    run(tmp_path / "steps", [step])
    done, metrics = read_results(out), (out / "metrics.jsonl").read_bytes()
    record = tmp_path / "steps" / "student.json"
    finished = json.loads(record.read_text())
    record.write_text(json.dumps({"command": finished["command"], "inputs": finished["inputs"]}))
    (out / "results.json").unlink()
    assert run(tmp_path / "steps", [step]).resumed
    assert read_results(out).checkpoint.sha256 == done.checkpoint.sha256
    assert (out / "metrics.jsonl").read_bytes() == metrics  # seconds and speeds too


@pytest.mark.slow
def test_a_warning_of_a_step_is_shown_on_the_screen(
    unlabelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "images"
    shutil.copytree(unlabelled, data)
    (data / "torn.png").write_bytes(b"no image")
    words = ("smoke", "--data", str(data), "--on-broken", "skip", "--out", str(tmp_path / "run"))
    run(tmp_path / "steps", [Step(name="student", title="student", tool="distill", words=words, out=tmp_path / "run")])
    assert "student: skipped: " in capfd.readouterr().err
