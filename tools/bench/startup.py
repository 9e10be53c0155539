"""How long a command takes to answer, and a run to reach its first batch, against `import torch`."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.config import Startup
from make_toy_data import Settings, make_toy_data
from stillroom.backbone import build_backbone, save_checkpoint

NETS = "--teacher timm/resnet50 --student cifar/resnet20"
RUN = "--checkpoint {folder}/student --out {folder}/out"
ANSWERS = (
    "distill --help",
    "distill kdep --nonsense",
    f"distill kdep {NETS} --data /nowhere --out {{folder}}/out",
    "cls_transfer --help",
    f"cls_transfer finetune {RUN} --train /nowhere --test /nowhere",
    "seg_transfer --help",
    f"seg_transfer pspnet {RUN} --data /nowhere",
    "det_transfer --help",
    f"det_transfer faster-rcnn-fpn {RUN} --backend torchvision --data /nowhere",
    "eval_ssl --help",
    f"eval_ssl knn {RUN} --train /nowhere --test /nowhere",
    "checkpoint --help",
    "checkpoint inspect {folder}/student",
    "checkpoint inspect /nowhere",
    "table --help",
    "make_subset --help",
    "study --help",
    "bench --help",
    "make_toy_data --help",
)
"""Commands that compute nothing."""
TOY = "--train {folder}/toy/heldout-shapes/train --test {folder}/toy/heldout-shapes/val"
RUNS = {
    "distill smoke": "distill smoke --data {folder}/toy/unlabelled --out {folder}/out --device cpu --workers 0",
    "eval_ssl smoke": f"eval_ssl smoke {TOY} --out {{folder}}/out --device cpu --workers 0",
    "cls_transfer smoke": f"cls_transfer smoke {TOY} --out {{folder}}/out --device cpu --workers 0",
}
"""Runs of cifar/resnet20, which needs no download."""
OPTIMIZER = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)])"
"""Every training makes an optimizer before its first batch; torch then imports torch._dynamo."""
FIRST_BATCH = """
import os, runpy, shutil, sys
from stillroom.runs.progress import Progress
over = Progress.over
def until_first_batch(self, *args, **kwargs):
    for batch in over(self, *args, **kwargs):
        shutil.rmtree(sys.argv[sys.argv.index("--out") + 1], ignore_errors=True)
        os._exit(0)
Progress.over = until_first_batch
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def figures(settings: Startup) -> dict[str, Any]:
    """Seconds, and their ratio to `import torch` in the same round; the speedup is that of `distill --help`."""
    with tempfile.TemporaryDirectory() as folder:
        counts = {"num_unlabelled": 480, "num_train": 16, "num_heldout": 64, "num_val": 64, "num_scenes": 0}
        make_toy_data(Settings(out=Path(folder) / "toy", size=40, **counts))
        net = build_backbone("cifar/resnet20")
        save_checkpoint(Path(folder) / "student", net, method="random", package="stillroom-backbone")
        commands = {line: [sys.executable, "-c", line] for line in ("import torch", OPTIMIZER)}
        commands |= {line: tool_command(settings.root, [], line.format(folder=folder)) for line in ANSWERS}
        for name, line in RUNS.items():
            commands[f"{name}, first batch"] = tool_command(
                settings.root, ["-c", FIRST_BATCH], line.format(folder=folder)
            )
        rounds = [
            {name: processor_seconds(settings.root, words) for name, words in commands.items()}
            for _ in range(settings.repeats)
        ]
    ratios = {name: [one[name] / one["import torch"] for one in rounds] for name in commands}
    return {
        "seconds": {name: statistics.median(one[name] for one in rounds) for name in commands},
        "of_torch": {name: sorted(round(ratio, 2) for ratio in values) for name, values in ratios.items()},
        "speedup": [1 / ratio for ratio in ratios["distill --help"]],
    }


def tool_command(root: Path, options: list[str], line: str) -> list[str]:
    """The words of the command that runs a tool."""
    tool, *words = line.split()
    return [sys.executable, *options, str(root.resolve() / "tools" / f"{tool}.py"), *words]


def processor_seconds(root: Path, words: list[str]) -> float:
    """Processor seconds, user and system, of a process and its children."""
    sources = [str(folder) for folder in sorted(root.resolve().glob("packages/*/src"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode not in (0, 2):
        raise ValueError(f"{' '.join(words)} ended with {finished.returncode}: {finished.stderr[-400:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
