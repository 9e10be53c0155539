"""Steps in lanes, run as the tour runs them: real scripts of tools/ in worker processes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.backbone import read_results

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from lanes import Lanes, Step, open_lanes


def subset(name: str, data: Path, out: Path, fraction: str = "0.5") -> Step:
    words = ("--data", str(data), "--fraction", fraction, "--out", str(out))
    return Step(name=name, title=f"a list, {name}", tool="make_subset", words=words, out=out)


def run(folder: Path, steps: list[Step], number: int = 1) -> Lanes:
    with open_lanes(folder, number, lambda step: f"made {step.out.name}") as opened:
        opened.run(steps)
    return opened


def test_steps_of_two_lanes_are_run_recorded_and_told_in_one_line_each(
    unlabelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = [subset(name, unlabelled, tmp_path / f"{name}.txt") for name in ("one", "two", "three")]
    lanes = run(tmp_path / "steps", steps, number=2)
    assert all(step.out.exists() for step in steps)
    assert {step.name for step in lanes.steps} == {"one", "two", "three"} and not lanes.kept
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
    """The second lane is free from the beginning, but what it could take reads what the first one makes."""
    first = subset("first", unlabelled, tmp_path / "first.txt")
    second = replace(subset("second", first.out, tmp_path / "second.txt"), needs=("first",))
    run(tmp_path / "steps", [second, first], number=2)
    assert [line.split("  ")[0] for line in capfd.readouterr().err.splitlines()] == ["a list, first", "a list, second"]
    assert second.out.read_text(encoding="utf-8").startswith("# 24 images of ")


def test_a_step_that_is_done_is_kept_and_one_of_another_command_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    step = subset("one", unlabelled, tmp_path / "one.txt")
    run(tmp_path / "steps", [step])
    step.out.unlink()  # it would come back, were it run again
    assert run(tmp_path / "steps", [step]).kept
    assert not step.out.exists()
    other = subset("one", unlabelled, tmp_path / "one.txt", fraction="0.25")
    with pytest.raises(ValueError, match=r"a list, one: .*one\.txt was made by another command: choose another --out"):
        run(tmp_path / "steps", [other])


def test_a_step_that_fails_ends_all_with_its_own_sentence_and_its_log(unlabelled: Path, tmp_path: Path) -> None:
    bad = subset("bad", unlabelled, tmp_path / "bad.txt", fraction="2")
    after = subset("after", unlabelled, tmp_path / "after.txt")
    sentence = r"a list, bad: --fraction is 2\.0: it must lie in \(0, 1\] \(log: .*steps/bad\.log\)"
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "steps", [bad, after])
    assert not after.out.exists()
    unknown = Step(name="x", title="x", tool="no_such_tool", words=(), out=tmp_path / "x")
    with pytest.raises(ValueError, match="x: stopped unexpectedly by ModuleNotFoundError: No module named 'no_such_to"):
        run(tmp_path / "steps", [unknown])
    assert "Traceback" in (tmp_path / "steps" / "x.log").read_text(encoding="utf-8")


def test_a_step_that_was_stopped_goes_on(unlabelled: Path, tmp_path: Path) -> None:
    """A run directory with a config and no results is resumed, which its command alone would refuse."""
    out = tmp_path / "run"
    words = ("smoke", "--data", str(unlabelled), "--out", str(out))
    step = Step(name="student", title="student", tool="distill", words=words, out=out)
    run(tmp_path / "steps", [step])
    done = read_results(out)
    (out / "results.json").unlink()
    (tmp_path / "steps" / "student.json").unlink()
    run(tmp_path / "steps", [step])
    assert read_results(out).checkpoint.sha256 == done.checkpoint.sha256
