"""tools/fuzz.py: what it takes for a fault, and a small run over every reader."""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from fuzz import Fault, Fuzz, main, read_one, run_target
from fuzz_files import Target, content_of, mutate
from fuzz_targets import TARGETS


def counts(read: Callable[[bytes], object], tmp_path: Path, samples: int = 8, **settings: float) -> dict:
    """Run a reader of our own, which gets the file's content."""

    def build(folder: Path) -> Target:
        file = folder / "file.txt"
        return Target("planted", file, [b"one 1", b"two 2"], lambda: read(file.read_bytes()), is_text=True)

    flags = Fuzz(out=tmp_path / "out", workers=1, **settings)
    return run_target(build, samples, flags, tmp_path / "work")


def test_a_result_and_a_sentence_of_ours_are_no_faults(tmp_path: Path) -> None:
    from stillroom.backbone.atomic import refuse_missing

    assert counts(len, tmp_path / "a") == {"samples": 8, "read": 8, "faults": []}
    assert counts(lambda _: refuse_missing(tmp_path), tmp_path / "b") == {"samples": 8, "refused": 8, "faults": []}


def test_a_librarys_value_error_is_a_fault_with_its_place_and_its_file(tmp_path: Path) -> None:
    result = counts(json.loads, tmp_path, samples=2)
    assert result["fault"] == 2
    first = result["faults"][0]
    assert (first["kind"], first["place"].split(":")[0]) == ("JSONDecodeError", "decoder.py")
    kept = tmp_path / "out" / "planted" / f"{first['sample']}.txt"
    settings = Fuzz(out=tmp_path / "out")
    target = Target("planted", kept, [b"one 1", b"two 2"], len, is_text=True)
    assert kept.read_bytes() == content_of(target, settings.seed, first["sample"])


def test_a_hang_a_crash_and_too_much_memory_are_faults_and_the_rest_is_read(tmp_path: Path) -> None:
    calls = iter(range(100))

    def read(_: bytes) -> None:
        if next(calls) == 1:
            os._exit(11)

    result = counts(read, tmp_path / "crash", samples=4)
    assert (result["read"], [fault["kind"] for fault in result["faults"]]) == (2, ["crash"] * 2)
    result = counts(lambda _: time.sleep(9), tmp_path / "hang", samples=1, seconds=0.2)
    assert [fault["kind"] for fault in result["faults"]] == ["hang"]
    result = counts(lambda _: bytearray(2**29), tmp_path / "memory", samples=1, gib=0.25)
    assert [fault["kind"] for fault in result["faults"]] == ["MemoryError"]


def test_the_same_seed_gives_the_same_file() -> None:
    contents = [b'{"a": [1, 2.5, "b"]}', b"<x>1</x>"]
    files = [mutate(contents, random.Random(f"{seed} t {sample}"), True) for seed in (0, 1) for sample in range(50)]
    again = [mutate(contents, random.Random(f"{seed} t {sample}"), True) for seed in (0, 1) for sample in range(50)]
    assert files == again and len(set(files)) > 80


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_gives_a_result_or_a_sentence(name: str, tmp_path: Path) -> None:
    """In small, and in this process: a fork would lack its threads. docs/results.md has the last large run."""
    target, outcomes = TARGETS[name](tmp_path), []
    for sample in range(60):
        target.file.write_bytes(content_of(target, 7, sample))
        outcomes.append(read_one(target, sample))
    assert [outcome for outcome in outcomes if isinstance(outcome, Fault)] == []
    assert False in outcomes  # some are refused


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_reads_its_valid_files(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    for content in target.contents:
        target.file.write_bytes(content)
        target.read()


def test_an_unknown_reader_and_an_existing_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        (["--out", str(tmp_path / "x"), "--only", "nothing"], "there is no reader 'nothing': choose from image, mask"),
        (["--out", str(tmp_path)], "exists: choose another --out"),
    ):
        monkeypatch.setattr(sys, "argv", ["fuzz.py", *words])
        with pytest.raises(SystemExit):
            main()
        assert sentence in capsys.readouterr().err
