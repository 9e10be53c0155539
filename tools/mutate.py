"""Break the code one line at a time, in a copy, and say which test notices each break.

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

from stillroom.backbone import format_table
from stillroom.backbone.atomic import write_file
from stillroom.backbone.command import report_errors

ROOT = Path(__file__).parents[1]
PARTS = ("packages", "tests", "tools", "pyproject.toml", "README.md", "CODEOWNERS")
"""What the tests of a package read."""
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S+|\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """A break: `old`, a line's text without its margin, which stands once in `file`, becomes `new`.

    Args:
        file, old, new: the line.
        tests: files that should notice; where they do not, all tests of the package are asked.
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
    """The tree that is copied; nothing in it is changed."""
    only: tuple[int, ...] = ()
    """Numbers of the mutations to run, from 1; none: all."""
    tests: tuple[str, ...] = ()
    """Test files to ask instead of those of the list."""
    out: Path | None = None
    """Also write the table as JSON to this file."""


def read_mutations(file: Path) -> list[Mutation]:
    """The list, in the order of the file."""
    return [Mutation(**entry) for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutation"]]


def mutate(text: str, mutation: Mutation) -> str:
    """The file's text with the line broken.

    Raises:
        ValueError: the line stands there not exactly once.
    """
    lines = text.split("\n")
    places = [place for place, line in enumerate(lines) if line.strip() == mutation.old]
    if len(places) != 1:
        raise ValueError(f"{mutation.file} has the line {mutation.old!r} {len(places)} times, expected it once")
    line = lines[places[0]]
    lines[places[0]] = line[: len(line) - len(line.lstrip())] + mutation.new
    return "\n".join(lines)


def run_tests(root: Path, tests: list[str]) -> tuple[bool, str]:
    """Run tests against the packages of `root`, to the first that fails: whether all passed, and what pytest said."""
    sources = [str(folder) for folder in sorted(root.glob("packages/*/src"))]  # before the installed ones
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sources),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # bytecode is known by second and size, which a broken line may share
    }
    words = ["-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise ValueError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0, done.stdout


def find_killer(root: Path, mutation: Mutation, tests: list[str]) -> str | None:
    """The first test that fails while the line is broken; None: the mutation survives.

    Raises:
        ValueError: the line is not there, or the test fails without the break as well.
    """
    file = root / mutation.file
    whole = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutate(whole, mutation), encoding="utf-8")
        for asked in (tests, [f"tests/{mutation.package}"]):
            passed, said = run_tests(root, asked)
            if not passed:
                break
        else:
            return None
    finally:
        file.write_text(whole, encoding="utf-8")
    killer = FAILED.search(said)
    assert killer is not None, said
    if not run_tests(root, [killer[1]])[0]:
        raise ValueError(f"{killer[1]} fails without {mutation.new!r} in {mutation.file} as well")
    return killer[1]


@report_errors
def main() -> None:
    """Copy the tree, break, test, print; exit with 1 where a mutation survives."""
    flags = tyro.cli(Mutate, description=__doc__)
    chosen = [(n, m) for n, m in enumerate(read_mutations(flags.mutations), 1) if not flags.only or n in flags.only]
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in PARTS:
            source = flags.root / part
            if source.is_dir():
                shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, root / part)
        for number, mutation in chosen:
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
