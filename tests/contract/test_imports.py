"""What is imported when: help, flags, paths and manifests need no torch; a net needs only its own library."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from stillroom.backbone import build_backbone, save_checkpoint

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
PACKAGES = [f"stillroom.{file.parent.name}" for file in sorted((ROOT / "packages").glob("*/pyproject.toml"))]
LAZY = [*PACKAGES, "stillroom.backbone.families"]
SLOW = (
    "cv2",
    "detectron2",
    "faiss",
    "huggingface_hub",
    "matplotlib",
    "mmcv",
    "mmengine",
    "mmseg",
    "onnx",
    "pandas",
    "pycocotools",
    "scipy",
    "sklearn",
    "sympy",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
)
COMMANDS = """
import contextlib, io, json, runpy, sys
tool, lines = json.loads(sys.argv[1])
sys.path.insert(0, tool.rpartition("/")[0])
for line in lines:
    sys.argv = [tool, *line.split()]
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, printed.getvalue(), [*sys.modules]]))
"""
BENCHMARKS = ("projection", "step", "cache", "monitor", "knn", "linear", "finetune", "seg", "det", "startup", "listing")
NETS = "--teacher timm/resnet50 --student cifar/resnet20"
RUN = "--checkpoint CHECKPOINT --out OUT"
LINES: dict[str, dict[str, str]] = {
    "distill": {
        "kdep --nonsense": "",
        "auto --nonsense": "",
        f"auto {NETS} --data /nowhere --out OUT": "there is no folder /nowhere",
        f"auto {NETS} --data HERE --out OUT --hours 0": "--hours is 0.0: it must be above 0",
        f"kdep {NETS} --data /nowhere --out OUT": "there is no folder /nowhere",
        "kdep --teacher /nowhere --student cifar/resnet20 --data HERE --out OUT": "no backbone named '/nowhere'",
        f"kdep {NETS} --data HERE --out HERE": "exists: choose another --out",
        f"kdep {NETS} --data HERE --out OUT --epochs 0": "--epochs is 0: it must be at least 1",
        "fit-alignment --teacher timm/resnet50 --dim 8 --data /nowhere --out OUT": "there is no folder /nowhere",
        "import-alignment --basis /v.npy --mean /m.npy --dim 8 --out HERE": "exists: choose another --out",
        "resume /nowhere": "/nowhere is not a run directory",
    },
    "cls_transfer": {
        "finetune --nonsense": "",
        f"finetune {RUN} --train /nowhere --test /nowhere": "there is no folder /nowhere",
        f"finetune {RUN}": "pass --train and --test, or --tasks and --data",
        f"predict {RUN} --images /nowhere": "there is no folder /nowhere",
        "predict --checkpoint HERE --out OUT --images HERE": "is not a checkpoint: it has no manifest.json",
        "resume /nowhere": "/nowhere is not a run directory",
    },
    "seg_transfer": {
        "pspnet --nonsense": "",
        f"pspnet {RUN} --data /nowhere": "there is no folder /nowhere",
        f"pspnet {RUN}": "pass --data, or --framework-config with a data set of its own",
        f"pspnet {RUN} --framework-config /nowhere.py": "there is no /nowhere.py",
        "predict --run HERE --out OUT --images HERE": "is not a finished run: it has no results.json",
        "resume /nowhere": "/nowhere is not a run directory",
    },
    "det_transfer": {
        "faster-rcnn-fpn --nonsense": "",
        f"faster-rcnn-fpn {RUN} --backend torchvision --data /nowhere": "there is no folder /nowhere",
        f"faster-rcnn-fpn {RUN} --backend torchvision": "pass --data, or --train and --val, or --framework-config",
        f"smoke {RUN} --train /nowhere.json HERE --val HERE HERE": "there is no /nowhere.json",
        "predict --run HERE --out OUT --images HERE": "is not a finished run: it has no results.json",
        "resume /nowhere": "/nowhere is not a run directory",
    },
    "eval_ssl": {
        "knn --nonsense": "",
        f"knn {RUN} --train /nowhere": "there is no folder /nowhere",
        f"features {RUN} --no-labels --train /nowhere": "there is no folder /nowhere",
        f"knn {RUN} --train HERE --seed -1": "--seed is -1: it must be at least 0",
        f"knn {RUN} --train HERE --temperature 0": "--temperature is 0.0: it must be above 0",
        f"linear {RUN} --train HERE --test HERE --held-out 1": "--held-out is 1.0: it must lie in (0, 1)",
    },
    "checkpoint": {
        "inspect --nonsense": "",
        "inspect /nowhere": "/nowhere is not a checkpoint: it has no manifest.json",
        "verify /nowhere": "/nowhere is not a checkpoint: it has no manifest.json",
    },
    "make_subset": {"--nonsense": "", "--per-class 2 --data /nowhere --out OUT": "there is no folder /nowhere"},
    "pack": {"--nonsense": "", "/nowhere --out OUT": "there is no folder /nowhere"},
    "table": {"--nonsense": "", "student=/nowhere": "/nowhere is not a results file"},
    "make_toy_data": {"--nonsense": ""},
    "study": {"methods --nonsense": ""},
    "study_agreement": {"--nonsense": ""},
    "mutate": {"--nonsense": ""},
    "fuzz": {"--nonsense": "", "--out OUT --samples 0": "--samples is 0: it must be at least 1"},
    "quickstart": {
        "--nonsense": "",
        "--images HERE --out OUT --hours 0": "--hours is 0.0: it must be above 0",
        "--images HERE --out OUT --hours nan": "--hours is nan: it must be above 0, and finite",
        "--images /nowhere --out OUT": "there is no folder /nowhere",
        "--images HERE --labelled /nowhere --out OUT": "there is no folder /nowhere",
        "--out OUT --teacher /nowhere": "no backbone named '/nowhere'",
        "--out OUT --epochs 0": "--epochs is 0: it must be at least 1",
    },
    "cost": {
        "--nonsense": "",
        "random:cifar/resnet20 --threads 0": "--threads is 0: it must be at least 1",
        "/nowhere": "no backbone named '/nowhere'",
    },
    "neighbours": {
        "--nonsense": "",
        "--teacher /nowhere --nets /nowhere --out OUT": "/nowhere has no train.npy: pass a run",
    },
    "bench": {"--nonsense": "", **{f"{name} --nonsense": "" for name in BENCHMARKS}},
}
"""Command lines that are refused, and part of the error."""


def python(script: str, *words: str) -> list:
    """Run a script in a new interpreter; returns the lines of JSON that it prints."""
    finished = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.mark.parametrize("tool", LINES)
def test_help_a_wrong_flag_and_a_missing_path_import_nothing_slow(tool: str, tmp_path: Path) -> None:
    paths = {"HERE": tmp_path, "OUT": tmp_path / "out", "CHECKPOINT": tmp_path / "student"}
    save_checkpoint(paths["CHECKPOINT"], build_backbone("cifar/resnet20"), method="kdep", package="stillroom-distill")
    expected = {"--help": (0, "usage: "), **{line: (2, text) for line, text in LINES[tool].items()}}
    if tool == "checkpoint":
        expected["inspect CHECKPOINT"] = (0, "cifar/resnet20")
    lines = [" ".join(str(paths.get(word, word)) for word in line.split()) for line in expected]
    results = python(COMMANDS, json.dumps([str(TOOLS / f"{tool}.py"), lines]))
    for line, (code, text), (exit_code, printed, modules) in zip(lines, expected.values(), results, strict=True):
        assert (exit_code, text in printed) == (code, True), f"{tool} {line} ended with {exit_code}: {printed}"
        assert not {*SLOW} & {*modules}, f"{tool} {line} imports {sorted({*SLOW} & {*modules})}"


def test_importing_a_package_does_not_import_its_exports() -> None:
    script = f"""
import importlib, json, sys
for name in {LAZY}:
    package = importlib.import_module(name)
    print(json.dumps([name, dir(package) == package.__all__ != [], [*sys.modules]]))
"""
    for name, lists_all, modules in python(script):
        assert lists_all, f"dir({name}) does not list what it exports"
        assert not {*SLOW} & {*modules}, f"{name} imports {sorted({*SLOW} & {*modules})}"


@pytest.mark.parametrize("package", LAZY)
def test_every_name_of_a_stub_is_exported_even_if_a_module_has_the_same_name(package: str) -> None:
    exporting = import_module(package)
    stub = ast.parse(Path(exporting.__file__ or "").with_suffix(".pyi").read_text(encoding="utf-8"))
    *imports, listed = stub.body
    names = []
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        for name in (alias.name for alias in node.names):
            home = import_module(f"{package}.{node.module or name}")
            assert getattr(exporting, name) is (getattr(home, name) if node.module else home)
            names.append(name)
    assert isinstance(listed, ast.Assign)
    assert exporting.__all__ == sorted(names) == sorted(ast.literal_eval(listed.value))


def test_a_lazily_imported_module_checks_shapes_too() -> None:
    from stillroom.backbone import families

    with pytest.raises(TypeCheckError):
        families.cifar.ShortcutA(8, 16, 2)("no tensor")


def test_a_net_imports_only_its_own_library(tmp_path: Path, labelled: Callable[..., Path]) -> None:
    """k-NN of a ResNet for small images needs neither timm nor torchvision; a net of torchvision needs no timm."""
    script = f"""
import json, sys
from pathlib import Path
from stillroom.backbone import build_backbone
from stillroom.eval_ssl import KnnConfig, evaluate
evaluate(KnnConfig(
    checkpoint=("random:cifar/resnet20",), train=Path({str(labelled("train"))!r}), out=Path({str(tmp_path / "knn")!r}),
    k=(1,), figures=False, workers=0, device="cpu",
))
print(json.dumps([*sys.modules]))
build_backbone("torchvision/resnet18")
print(json.dumps([*sys.modules]))
"""
    of_cifar, of_torchvision = ({*SLOW} & {*modules} for modules in python(script))
    assert of_cifar == {"torch"}
    assert "torchvision" in of_torchvision and "timm" not in of_torchvision


def test_one_import_registers_everything_that_configs_of_mmengine_name() -> None:
    folder = ROOT / "packages" / "seg_transfer" / "src" / "stillroom" / "seg_transfer"
    registering = {file.stem for file in folder.glob("*.py") if "register_module(" in file.read_text(encoding="utf-8")}
    (imported,) = ast.parse((folder / "plugin.py").read_text(encoding="utf-8")).body[1:]
    assert isinstance(imported, ast.ImportFrom) and registering == {alias.name for alias in imported.names}
