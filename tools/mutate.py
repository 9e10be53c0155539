"""Break the code one line at a time, in a copy, and report which test fails for each.

python tools/mutate.py --only 3 7
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tyro

from stillroom.backbone.atomic import write_file
from stillroom.backbone.command import report_errors
from stillroom.runs import format_table

ROOT = Path(__file__).parents[1]
PARTS = ("packages", "tests", "tools", "pyproject.toml", "README.md", "CODEOWNERS")
"""Files and folders that the tests of a package read."""
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S+|\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """A break: the line `old`, without its indentation, becomes `new`.

    Args:
        file: the file, in which the line occurs exactly once.
        old, new: text of the line before and after.
        tests: files with tests that should fail; if none does, all tests of the package run.
    """

    file: str
    old: str
    new: str
    tests: list[str]

    @property
    def package(self) -> str:
        return Path(self.file).parts[1]


@dataclass(frozen=True, kw_only=True)
class Mutate:
    """Run every mutation of a list."""

    mutations: Path = ROOT / "tools" / "mutations.toml"
    """The list."""
    root: Path = ROOT
    """The tree to copy; it is not changed."""
    only: tuple[int, ...] = ()
    """Numbers of the mutations to run, from 1; without it: all."""
    tests: tuple[str, ...] = ()
    """Test files to run instead of those of the list."""
    out: Path | None = None
    """Also write the table as JSON to this file."""


def read_mutations(file: Path) -> list[Mutation]:
    """The list, in the order of the file; ValueError if it is not one."""
    try:
        return [Mutation(**entry) for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutation"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is not a list of mutations: {error}") from error


def mutate(text: str, mutation: Mutation) -> str:
    """The file's text with the line broken.

    Raises:
        ValueError: the line does not occur exactly once.
    """
    lines = text.split("\n")
    indices = [index for index, line in enumerate(lines) if line.strip() == mutation.old]
    if len(indices) != 1:
        raise ValueError(f"{mutation.file} has the line {mutation.old!r} {len(indices)} times, expected it once")
    line = lines[indices[0]]
    lines[indices[0]] = line[: len(line) - len(line.lstrip())] + mutation.new
    return "\n".join(lines)


def run_tests(root: Path, tests: list[str]) -> tuple[bool, str]:
    """Run tests against the packages of `root` until one fails: whether all passed, and pytest's output."""
    sources = [str(folder) for folder in sorted(root.glob("packages/*/src"))]  # take precedence over the installed ones
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sources),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # bytecode is matched by second and size only
    }
    words = ["-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
    finished = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    if finished.returncode not in (0, 1):
        raise ValueError(f"pytest ended with {finished.returncode}: {finished.stdout[-2000:]}{finished.stderr[-2000:]}")
    return finished.returncode == 0, finished.stdout


def find_killer(root: Path, mutation: Mutation, tests: list[str]) -> str | None:
    """The first test that fails while the line is broken; None if the mutation survives.

    Raises:
        ValueError: the line does not exist, or the test also fails without the break.
    """
    file = root / mutation.file
    original = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutate(original, mutation), encoding="utf-8")
        for selected in (tests, [f"tests/{mutation.package}"]):
            passed, output = run_tests(root, selected)
            if not passed:
                break
        else:
            return None
    finally:
        file.write_text(original, encoding="utf-8")
    killer = FAILED.search(output)
    assert killer is not None, output
    if not run_tests(root, [killer[1]])[0]:
        raise ValueError(f"{killer[1]} also fails without {mutation.new!r} in {mutation.file}")
    return killer[1]


@report_errors
def main() -> None:
    """Copy the tree, break its lines, run tests, print a table; exit with 1 if a mutation survives."""
    flags = tyro.cli(Mutate, description=__doc__)
    selected = [(n, m) for n, m in enumerate(read_mutations(flags.mutations), 1) if not flags.only or n in flags.only]
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in PARTS:
            source = flags.root / part
            if source.is_dir():
                shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, root / part)
        for number, mutation in selected:
            began = time.perf_counter()
            killer = find_killer(root, mutation, [*flags.tests] or mutation.tests)
            seconds = f"{time.perf_counter() - began:.0f}"
            rows.append([str(number), mutation.package, mutation.new, killer or "SURVIVES", seconds])
            print(*rows[-1], sep="  ", flush=True)
    print(format_table(["", "package", "broken line", "killed by", "s"], rows))
    if flags.out is not None:
        write_file(flags.out, json.dumps(rows, indent=2) + "\n")
    if any(row[3] == "SURVIVES" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
