"""From a list of a million files to a first batch: seconds and memory, against a tuple of paths as version 0.1 had."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from bench.config import Listing
from bench.startup import FIRST_BATCH, tool_command

_FOLDER = 1000  # files in each
_LINKS = 50_000  # of one file, fewer than file systems allow
PEAK = """
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], flush=True)
"""
"""Prints the largest memory of the process, KiB: that of the parent, which `getrusage` begins with, does not count."""
OURS = """
import sys
from stillroom.images import read_unlabelled
source = read_unlabelled(sys.argv[1])
source.fingerprint
"""
PATHS = """
import hashlib, sys
from pathlib import Path
file = Path(sys.argv[1])
paths = tuple(file.parent / line for line in file.read_text().splitlines())
assert all(path.is_file() for path in paths)
digest = hashlib.sha256()
for path in paths:
    digest.update(f"{path.relative_to(file.parent).as_posix()}\\0{path.stat().st_size}\\n".encode())
"""
RUN = "distill smoke --data {data} --out {out} --device cpu --workers 0"


def figures(settings: Listing) -> dict[str, Any]:
    """Seconds of each process, by the clock and of the processor, and MiB above the same with a list of 1,000 files."""
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        root = Path(folder)
        lists = {count: make_files(root / str(count), count) for count in (_FOLDER, settings.num_images)}
        cache = {"STILLROOM_CACHE": str(root / "cache")}
        first_batch = FIRST_BATCH.replace("        os._exit", f"        {PEAK.strip()}\n        os._exit")
        run = tool_command(settings.root, ["-c", first_batch], RUN.format(data="{data}", out=root / "out"))
        commands = {
            "tuple of paths": [sys.executable, "-c", PATHS + PEAK, "{data}"],
            "make the index": [sys.executable, "-c", OURS + PEAK, "{data}"],
            "map the index": [sys.executable, "-c", OURS + PEAK, "{data}"],
            "first batch": run,
        }
        seconds, processor, mebibytes = {}, {}, {}
        for name, words in commands.items():
            small, large = (measure(settings.root, words, file, cache) for file in lists.values())
            seconds[name], processor[name], mebibytes[name] = large[0], large[1], large[2] - small[2]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "mib": mebibytes,
        "speedup": [processor["tuple of paths"] / processor["map the index"]],
    }


def make_files(folder: Path, count: int) -> Path:
    """Write a list of files: hard links of a few images, a thousand in each folder."""
    folder.mkdir()
    file = folder.with_suffix(".txt")
    with file.open("w") as lines:
        for number in range(count):
            if number % _LINKS == 0:
                original = folder / f"original{number}.jpg"
                Image.effect_noise((96, 80), 60).convert("RGB").save(original)
            name = f"n{number // _FOLDER:08d}/n{number // _FOLDER:08d}_{number % _FOLDER}.jpg"
            if number % _FOLDER == 0:
                (folder / name).parent.mkdir()
            os.link(original, folder / name)
            lines.write(f"{folder.name}/{name}\n")
    return file


def measure(root: Path, words: list[str], data: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds of a process by the clock, its start included, and of the processor, and its largest memory, MiB."""
    sources = [str(folder) for folder in sorted(root.resolve().glob("packages/*/src"))]
    paths = {"PYTHONPATH": os.pathsep.join(sources), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [word.replace("{data}", str(data)) for word in words],
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    *_, peak = process.stdout.read().split()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, int(peak) / 1024
