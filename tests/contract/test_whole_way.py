"""Images -> teacher -> student -> k-NN and fine-tuning, through the scripts that users run."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch
import torchvision

from stillroom.backbone import load_checkpoint
from stillroom.runs import read_results
from twins import assert_bit_equal

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"


Tool = Callable[..., str]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """Run `python tools/<line>` in this process, as importing torch anew takes seconds; returns what it printed."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # presets hold tyro.MISSING for flags of all types
    monkeypatch.syspath_prepend(str(TOOLS))

    def call(line: str, code: int = 0) -> str:
        name, *words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        capsys.readouterr()
        try:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
            exit_code = 0
        except SystemExit as exit_:
            exit_code = exit_.code or 0
        printed = capsys.readouterr()
        assert exit_code == code, printed.err
        return printed.out if code == 0 else printed.err

    return call


def test_a_student_from_distill_loads_in_every_consumer(
    tool: Tool, unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path
) -> None:
    train, test = labelled("train"), labelled("test", per_class=4, seed=1)
    small = "--epochs 1 --batch-size 12 --device cpu --workers 0"
    teacher, run, knn = tmp_path / "teacher", tmp_path / "kdep", tmp_path / "knn"
    folders = f"--train {train} --test {test}"
    tool(f"cls_transfer scratch --checkpoint random:cifar/resnet32 {folders} --size 16 --out {teacher} {small}")
    nets = f"--teacher {teacher}/checkpoint --student cifar/resnet20 --student.size 16"
    printed = tool(f"distill kdep {nets} --data {unlabelled} --out {run} {small} schedule:cosine")
    assert printed.splitlines()[-1].startswith(f"{run}: loss ")
    _, manifest = load_checkpoint(run / "student")
    assert manifest.teacher is not None
    assert manifest.teacher.weights_sha256 == load_checkpoint(teacher / "checkpoint")[1].weights.sha256

    tool(f"eval_ssl knn --checkpoint {run}/student {folders} --out {knn} --k 1 5 --device cpu")
    assert read_results(knn).checkpoint.sha256 == manifest.weights.sha256
    tool(f"cls_transfer finetune --checkpoint {run}/student {folders} --out {tmp_path}/finetuned {small}")
    assert read_results(tmp_path / "finetuned").checkpoint.method == "finetune"
    tool(f"checkpoint verify {run}/student")
    table = tool(f"table --metric top1_k5 --out {tmp_path}/table.json student={knn}")
    assert table.startswith("| k-NN top-1, k = 5, % |") and "| student" in table
    top1 = read_results(knn).metrics["top1_k5"]
    assert list(json.loads((tmp_path / "table.json").read_text())["rows"]["student"].values()) == [top1]


def test_every_consumer_takes_the_student_of_a_kept_epoch_and_lists_them_where_one_is_missing(
    tool: Tool, unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path
) -> None:
    train, run = labelled("train"), tmp_path / "run"
    small = "--epochs 2 --batch-size 32 --device cpu --workers 0"
    nets = "--teacher random:cifar/resnet20 --student cifar/resnet20 cifar/resnet20 --student.size 16"
    tool(f"distill kdep {nets} --data {unlabelled} --out {run} --keep-every 1 {small}")
    kept, missing = f"{run}/student-2@1", f"{run}/student-2@9"
    folders = f"--train {train} --test {labelled('test', per_class=4, seed=1)}"
    tool(f"eval_ssl knn --checkpoint {kept} {folders} --out {tmp_path}/knn --k 1 --device cpu")
    assert read_results(tmp_path / "knn").checkpoint.path == kept
    tool(f"cls_transfer finetune --checkpoint {kept} {folders} --out {tmp_path}/finetuned {small}")
    tool(f"checkpoint verify {kept}")
    for line in (
        f"eval_ssl linear --checkpoint {missing} {folders}",
        f"cls_transfer finetune --checkpoint {missing} {folders}",
        f"seg_transfer fcn --checkpoint {missing} --data {train}",
        f"det_transfer smoke --checkpoint {missing} --data {train}",
        f"distill kdep --teacher {missing} --student cifar/resnet20 --data {unlabelled}",
        f"checkpoint export {missing} --to torchvision",
    ):
        error = tool(f"{line} --out {tmp_path}/refused", code=2)
        assert "there is no epoch '9' of" in error and "those kept are 1, 2, named" in error, line
    assert not (tmp_path / "refused").exists()


def test_knn_monitors_a_run_and_a_stored_head_is_evaluated(
    tool: Tool, unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path
) -> None:
    train, run = labelled("train"), tmp_path / "run"
    nets = "--teacher random:cifar/resnet32 --student cifar/resnet20"
    monitor = f"--monitor.knn {train} --monitor.every 1"
    small = "--epochs 2 --batch-size 32 --device cpu --workers 0"
    tool(f"distill simreg {nets} --data {unlabelled} --out {run} --keep-head {monitor} {small}")
    assert {"monitor_knn20", "monitor_knn1"} <= read_results(run).metrics.keys()
    assert (run / "student-best" / "manifest.json").exists()
    knn = f"--train {train} --test {labelled('test', per_class=8, seed=1)} --k 1 --device cpu"
    tool(f"eval_ssl knn --checkpoint {run}/student --head distill {knn} --out {tmp_path}/head")
    assert read_results(tmp_path / "head").protocol.endswith("head=distill")
    error = tool(f"eval_ssl knn --checkpoint {run}/student --head x {knn} --out {tmp_path}/x", code=2)
    assert "keeps no head named 'x'; it keeps ['distill']" in error


@pytest.mark.slow  # six commands, each trains
def test_every_smoke_preset_runs(tool: Tool, unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path) -> None:
    folders = f"--train {labelled('train')} --test {labelled('test', per_class=8, seed=1)}"
    tool(f"distill smoke --data {unlabelled} --out {tmp_path}/distill")
    tool(f"cls_transfer smoke {folders} --out {tmp_path}/cls")
    tool(f"eval_ssl smoke {folders} --out {tmp_path}/knn")
    few = "--num-unlabelled 16 --num-train 16 --num-heldout 8 --num-val 16 --num-scenes 16 --num-scenes-val 8"
    tool(f"make_toy_data --out {tmp_path}/toy {few}")
    for name in ("seg_transfer", "det_transfer"):
        tool(f"{name} smoke --data {tmp_path}/toy/scenes --out {tmp_path}/{name}")


def test_cls_transfer_begins_with_every_tensor_of_an_imported_file(tmp_path: Path) -> None:
    from stillroom.cls_transfer import ClassifyConfig
    from stillroom.cls_transfer.initial import build_model
    from stillroom.convert import import_file

    published = torchvision.models.resnet18().state_dict()
    moco = {f"module.encoder_q.{key}": tensor for key, tensor in published.items()}
    torch.save({"state_dict": moco}, tmp_path / "moco")
    import_file(tmp_path / "moco", tmp_path / "imported", source="moco", backbone="torchvision/resnet18")
    folders = {"train": tmp_path, "test": tmp_path, "out": tmp_path / "run"}
    model = build_model(ClassifyConfig(checkpoint=(str(tmp_path / "imported"),), **folders), 3)
    backbone = {key: tensor for key, tensor in published.items() if not key.startswith("fc.")}
    assert_bit_equal(dict(model.backbone.net.state_dict()), backbone)


OTHER_SCRIPTS = [
    "checkpoint",
    "table",
    "bench",
    "study",
    "study_agreement",
    "quickstart",
    "cost",
    "neighbours",
    "make_subset",
    "mutate",
    "fuzz",
]


@pytest.mark.parametrize("name", OTHER_SCRIPTS)
def test_every_other_script_answers_help(tool: Tool, name: str) -> None:
    assert "usage:" in tool(f"{name} --help")


def test_a_table_row_that_is_not_label_and_runs_is_refused(tool: Tool) -> None:
    assert tool("table 'no equals sign'", code=2) == "error: 'no equals sign' is not LABEL=RUN,RUN,...\n"


COMMAND = re.compile(
    r"^\s*(?:(?:\.venv/bin/python|srun \S+ python) tools/(\w+)\.py|stillroom-([a-z-]+)) (.+)$", re.MULTILINE
)


def commands(text: str) -> list[list[str]]:
    """Our command lines in a page or script, continuation lines joined: the tool's name, then its words."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        [script or console.replace("-", "_"), *shlex.split(words)] for script, console, words in COMMAND.findall(joined)
    ]


PAGES = [ROOT / "README.md", ROOT / "docs" / "scale.md", *sorted((ROOT / "packages").glob("*/README.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the types of the command; nothing is run."""
    import tyro

    from stillroom.backbone.cli import installed_commands
    from stillroom.cls_transfer.cli import command_type as cls_transfer
    from stillroom.det_transfer.cli import command_type as det_transfer
    from stillroom.distill.cli import command_type as distill
    from stillroom.eval_ssl.cli import command_type as eval_ssl
    from stillroom.seg_transfer.cli import command_type as seg_transfer

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # presets hold tyro.MISSING for flags of all types
    types = {
        "distill": distill,
        "cls_transfer": cls_transfer,
        "eval_ssl": eval_ssl,
        "seg_transfer": seg_transfer,
        "det_transfer": det_transfer,
    }
    calls = commands(page.read_text(encoding="utf-8"))
    assert calls, f"{page} shows no command"
    for name, *words in calls:
        if name == "checkpoint":
            tyro.extras.subcommand_cli_from_dict(installed_commands(), args=words)
        else:
            tyro.cli(types[name](), args=words, config=(tyro.conf.CascadeSubcommandArgs,))
