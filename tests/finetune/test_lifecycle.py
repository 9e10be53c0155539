"""The life cycle of fine-tuning, with a task that learns nothing and knows none of ours."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stillroom.backbone import build_backbone, load_checkpoint, save_checkpoint
from stillroom.backbone.initial import initial_backbone
from stillroom.backbone.provenance import made_by
from stillroom.finetune import lifecycle, table
from stillroom.finetune.config import NETS_AND_SEEDS, FineTuneConfig, check_shared, refuse_paths, split
from stillroom.finetune.lifecycle import Prepared, Task, finetune, initial_sha256, resume
from stillroom.runs import Results, Run, claims, read_results
from stillroom.runs.claims import ClaimedError
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import CheckpointRecord, DatasetRecord, write_results
from stillroom.runs.run import DivergedError
from stillroom.runs.run_files import to_json


@dataclass(frozen=True, kw_only=True)
class ToyConfig(FineTuneConfig):
    """Read one file."""

    data: Path
    rates: tuple[float, ...] = (0.1,)
    save_every: int = 7


class Toy:
    """A task that measures the seed, and notes what it is asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stop_in: str | None = None
        self.task = Task(
            package="stillroom-toy",
            config=ToyConfig,
            check=lambda config, world_size, on_cpu: check_shared(config),
            read_records=lambda config, run: self.read(config),
            prepare=self.prepare,
            train=self.train,
            tabulate=partial(table.tabulate, metric="score", per_class="by_class"),
            axes={**NETS_AND_SEEDS, "rates": "rate{:g}".format},
        )

    def read(self, config: ToyConfig) -> dict[str, DatasetRecord]:
        return {"train": DatasetRecord(path=str(config.data), count=1, fingerprint=config.data.read_text())}

    def prepare(self, config: ToyConfig, run: Run, saved: Path | None) -> Prepared:
        self.calls.append(f"prepare {config.out.name}{'' if saved is None else ' from its own weights'}")
        backbone = (
            initial_backbone(config.name, config.like, config.seed) if saved is None else load_checkpoint(saved)[0]
        )
        return Prepared(backbone=backbone, records=self.read(config))

    def train(self, config: ToyConfig, run: Run, prepared: Prepared, resume: bool) -> None:
        self.calls.append(f"{'resume' if resume else 'train'} {config.out.name}")
        if self.stop_in == config.out.name:
            raise KeyboardInterrupt
        results = Results(
            task="toy",
            protocol="toy/v1",
            datasets=dict(prepared.records),
            checkpoint=CheckpointRecord(path="", sha256="", method=""),
            metrics={"score": 0.5 + config.seed / 10},
            seed=config.seed,
            seconds=0.0,
            made_by=made_by("stillroom-toy", config_to_dict(config)),
            extra={"initial_sha256": initial_sha256(config.out), "by_class": {"a": 1.0}},
        )
        write_results(config.out, results)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def config(tmp_path: Path, small_student: Path) -> ToyConfig:
    (tmp_path / "data.txt").write_text("one")
    return ToyConfig(checkpoint=(str(small_student),), data=tmp_path / "data.txt", out=tmp_path / "run", device="cpu")


@pytest.mark.parametrize("if_exists", ["refuse", "resume"])
def test_resume_waits_for_a_silent_machine_where_the_run_began_so(
    toy: Toy, config: ToyConfig, monkeypatch: pytest.MonkeyPatch, if_exists: str
) -> None:
    toy.stop_in = "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(toy.task, replace(config, if_exists=if_exists))
    toy.stop_in = None
    monkeypatch.setattr(claims, "STALE", 1.0)
    holder = {"host": "gone", "pid": 3, "started": "", "machine": "gone", "process": "1", "id": ""}
    config.out.with_name(".run.claim").write_text(json.dumps(holder))
    if if_exists == "refuse":
        with pytest.raises(ClaimedError, match="run is being written by process 3 on gone"):
            resume(toy.task, config.out)
    else:
        assert read_results(resume(toy.task, config.out)).metrics == {"score": 0.5}


def overwrite(student: Path) -> None:
    torch.manual_seed(4)
    save_checkpoint(student, build_backbone("cifar/resnet20", feature="before"), method="kdep", package="test")


def test_a_run_keeps_what_it_began_with(toy: Toy, config: ToyConfig) -> None:
    assert finetune(toy.task, config) == config.out
    assert toy.calls == ["prepare run", "train run"]
    initial, manifest = load_checkpoint(config.out / "initial")
    student, given = load_checkpoint(config.name)
    assert (
        manifest.weights == given.weights and manifest.method == "kdep" and manifest.made_by.package == "stillroom-toy"
    )
    assert torch.equal(initial.net.conv1.weight, student.net.conv1.weight)
    began = json.loads((config.out / "inputs.json").read_text())
    assert began["sha256"].items() >= {"train": "one", "checkpoint": given.weights.sha256}.items()
    assert read_results(config.out).extra["inputs"] == began["sha256"]
    assert json.loads((config.out / "config.json").read_text())["save_every"] == 7
    with pytest.raises(ValueError, match=r"run exists: choose another --out, or resume it with `resume .*run`"):
        finetune(toy.task, config)


def test_a_new_run_that_is_refused_leaves_nothing_unless_its_framework_has_logged(toy: Toy, config: ToyConfig) -> None:
    def train(config: ToyConfig, run: Run, prepared: Prepared, resume: bool, line: str) -> None:
        (config.out / "logs").mkdir()
        (config.out / "logs" / "scalars.json").write_text(line)
        raise DivergedError("the loss is nan")

    for line in ("", "{}"):
        task = replace(toy.task, train=partial(train, line=line), begun=("*/scalars.json",))
        with pytest.raises(DivergedError, match="the loss is nan"):
            finetune(task, config)
        assert config.out.exists() == bool(line)


def test_a_stopped_run_is_resumed_where_only_its_data_are_left(toy: Toy, config: ToyConfig) -> None:
    toy.stop_in = "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(toy.task, config)
    shutil.rmtree(config.name)
    moved = config.out.rename(config.out.with_name("moved"))
    assert resume(toy.task, moved, workers=3) == moved
    assert toy.calls[2:] == ["prepare moved from its own weights", "resume moved"]
    assert read_results(moved).made_by.config["workers"] == 3
    toy.calls.clear()
    assert resume(toy.task, moved) == moved and toy.calls == [], "a finished run is left as it is"


@pytest.mark.parametrize("flags", [{"log_every": 0}, {"workers": -1}])
def test_a_resumed_run_checks_its_flags(toy: Toy, config: ToyConfig, flags: dict) -> None:
    finetune(toy.task, config)
    (config.out / "results.json").unlink()
    with pytest.raises(ValueError, match=r"--(log-every|workers) is .*: it must be at least"):
        resume(toy.task, config.out, **flags)


def test_a_run_is_not_resumed_with_other_data(toy: Toy, config: ToyConfig) -> None:
    finetune(toy.task, config)
    (config.out / "results.json").unlink()
    config.data.write_text("two")
    with pytest.raises(
        ValueError, match=r"the data in .*data.txt have changed since .*run began: choose another --out"
    ):
        resume(toy.task, config.out)
    with pytest.raises(ValueError, match=r"is not a run directory: it has no config\.json"):
        resume(toy.task, config.out.parent / "none")


def test_a_run_is_not_resumed_where_its_checkpoint_or_its_own_copy_was_made_anew(toy: Toy, config: ToyConfig) -> None:
    finetune(toy.task, config)
    (config.out / "results.json").unlink()
    torch.manual_seed(5)
    save_checkpoint(config.out / "initial", build_backbone("cifar/resnet20"), method="random", package="test")
    shutil.move(config.name, f"{config.name}-moved")
    with pytest.raises(ValueError, match=r"the weights of .*initial have changed since .*run began"):
        resume(toy.task, config.out)


def test_a_sweep_keeps_finished_runs_resumes_stopped_ones_and_makes_one_table(
    toy: Toy, config: ToyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = replace(config, checkpoint=("random", config.name), seeds=(0, 1))
    names = [run.out.name for run in split(sweep, toy.task.axes)]
    assert names[0].startswith("random-") and names[0].endswith("-seed0-rate0.1") and len({*names}) == 4
    toy.stop_in = names[2]
    with pytest.raises(KeyboardInterrupt):
        finetune(toy.task, sweep)
    ahead = toy.calls[:2]
    assert ahead == [f"prepare {names[1]}", f"prepare {names[3]}"], "one seed of each net, before the first run"
    assert toy.calls[2:6] == [f"{word} {name}" for name in names[:2] for word in ("prepare", "train")]
    with pytest.raises(ValueError, match="is a sweep: repeat its command, which resumes it"):
        resume(toy.task, sweep.out)
    toy.calls.clear()
    toy.stop_in = None
    assert finetune(toy.task, sweep) == sweep.out
    assert [call for call in toy.calls if not call.startswith("prepare")] == [f"resume {names[2]}", f"train {names[3]}"]
    content = json.loads((sweep.out / "table.json").read_text())
    assert list(content["rows"]) == ["random", config.name] and content["seeds"] == [0, 1]
    assert content["rows"][config.name]["score"] == [0.5, 0.6] and content["rows"]["random"]["over_first"] == [0, 0]
    text = table.report(sweep.out, lambda path: "one run")
    assert "| random" in text and "55.0 +- 7.1" in text and text.endswith("% score in the mean")
    assert table.report(sweep.out / names[0], lambda path: "one run") == "one run"
    with pytest.raises(ValueError, match=r"is a run with other settings \(batch_size\): choose another --out"):
        finetune(toy.task, replace(sweep, batch_size=4))
    with pytest.raises(
        ValueError, match=r"sweep: choose another --out|is a single run: choose another --out for a sweep"
    ):
        finetune(toy.task, replace(sweep, out=sweep.out / names[0]))


@pytest.mark.parametrize("finished", [True, False])
def test_a_sweep_does_not_mix_runs_of_a_checkpoint_that_was_overwritten(
    toy: Toy, config: ToyConfig, finished: bool
) -> None:
    sweep = replace(config, seeds=(0, 1))
    finetune(toy.task, sweep)
    if not finished:
        for file in sweep.out.glob("*/results.json"):
            file.unlink()
    overwrite(Path(config.name))
    with pytest.raises(ValueError, match=r"the weights of .* have changed since .* began: choose another --out"):
        finetune(toy.task, sweep)


def test_a_sweep_does_not_mix_runs_of_one_checkpoint_with_two_inputs(toy: Toy, config: ToyConfig) -> None:
    sweep = replace(config, seeds=(0, 1))
    finetune(toy.task, sweep)
    manifest = Path(config.name) / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"input": content["input"] | {"std": [1, 1, 1]}}))
    with pytest.raises(ValueError, match=r"the input settings of .* have changed since .* began: choose another --out"):
        finetune(toy.task, sweep)


def test_a_sweep_does_not_keep_runs_of_data_that_changed(toy: Toy, config: ToyConfig) -> None:
    sweep = replace(config, seeds=(0, 1))
    finetune(toy.task, sweep)
    config.data.write_text("two")
    with pytest.raises(ValueError, match=r"the data in .*data.txt have changed since .* began"):
        finetune(toy.task, sweep)


def test_a_sweep_of_one_process_is_that_of_two(
    config: ToyConfig, in_two_processes: Callable[[Callable[[], object]], list]
) -> None:
    def sweep() -> list[str]:
        toy = Toy()
        toy.train = lambda *arguments: None if arguments[1].rank else Toy.train(toy, *arguments)  # type: ignore[method-assign]
        finetune(replace(toy.task, train=toy.train), replace(config, seeds=(0, 1)))
        return [call.split()[0] for call in toy.calls]

    main, other = in_two_processes(sweep)
    assert main == ["prepare", "prepare", "train", "prepare", "train"] and other == ["prepare"] * 3
    assert len(list(config.out.glob("*/results.json"))) == 2 and (config.out / "table.json").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "must be at least 1"),
        ({}, "exists: choose another"),
        ({"log_every": 0}, "must be at least 1"),
    ],
)
def test_a_refusal_leaves_the_process_group(
    toy: Toy, config: ToyConfig, in_two_processes: Callable[[Callable[[], object]], list], changes: dict, text: str
) -> None:
    finetune(toy.task, config)
    (config.out / "results.json").unlink()

    def refused() -> bool:
        Run.start("cpu").wait()  # both have joined before one leaves
        with pytest.raises(ValueError, match=text):
            if "log_every" in changes:
                resume(toy.task, config.out, **changes)
            else:
                finetune(toy.task, replace(config, **changes))
        return dist.is_initialized()

    assert in_two_processes(refused) == [False, False]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"checkpoint": ()}, "--checkpoint is empty: pass at least one"),
        ({"seeds": (0, 0)}, "--seeds lists 0 twice: pass it once"),
        ({"rates": ()}, "--rates is empty: pass at least one"),
        ({"seeds": (-1,)}, r"--seeds holds \[-1\]: it must be at least 0"),
        ({"batch_size": 0}, "--batch-size is 0: it must be at least 1"),
        ({"save_every": 0}, "--save-every is 0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(toy: Toy, config: ToyConfig, changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        finetune(toy.task, replace(config, **changes))
    assert not config.out.exists()


def test_paths_are_refused_before_anything_is_imported(config: ToyConfig) -> None:
    refuse_paths(config, alone=True)
    with pytest.raises(ValueError, match="there is no backbone named"):
        refuse_paths(replace(config, like="./none"), alone=True)
    config.out.mkdir()
    with pytest.raises(ValueError, match="exists: choose another --out"):
        refuse_paths(config, alone=True)


def test_random_takes_the_net_of_the_first_checkpoint_and_others_none(config: ToyConfig) -> None:
    runs = split(replace(config, checkpoint=("random", config.name), like=None))
    assert [run.like for run in runs] == [config.name, None]
    assert lifecycle.split is split


def test_a_sweep_with_a_metric_that_is_nan_ends_with_a_table_that_is_json(tmp_path: Path) -> None:
    assert table.sample_std([0.5, math.nan]) is not None and table.sample_std([0.5]) is None
    rows = {"a": {"protocol": "p", "mean": math.nan, "score": [math.nan, 0.5], "over_first": [math.nan, 0.0]}}
    text = to_json({"metric": "score", "rows": rows})
    json.loads(text, parse_constant=pytest.fail)
    (tmp_path / "table.json").write_text(text)
    assert "nan +- nan" in table.report(tmp_path, str)


def test_a_run_that_cannot_be_started_is_never_seen_half(
    toy: Toy, config: ToyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(lifecycle, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        finetune(toy.task, config)
    assert not config.out.exists()


def test_a_bug_in_a_run_leaves_its_traceback_there(toy: Toy, config: ToyConfig) -> None:
    def train(config: ToyConfig, run: Run, prepared: Prepared, resume: bool) -> None:
        {}["weights"]

    for again in (False, True):
        task = replace(toy.task, train=train)
        with pytest.raises(KeyError):
            resume(task, config.out) if again else finetune(task, config)
        assert "KeyError: 'weights'" in (config.out / "error.log").read_text()
        (config.out / "error.log").unlink()
