"""Whatever stands in a file of tensors, reading it ends in its content or in one sentence that names it."""

import argparse
import pickle
import random
from pathlib import Path

import pytest
import torch

from stillroom.backbone.tensor_files import TensorFileError, load_tensors

STATE = {"weight": torch.ones(2, 3), "step": 7}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS, not the file itself"),
        *((pickle.dumps({"a": [1.5]}, n), "is a pickle that torch.save did not write") for n in (0, 1, 3, 4, 5)),
        (b"junk, 20 bytes of it", "is not a PyTorch file"),
        (b"PK\x03\x04 torn", r"is damaged, or holds more than tensors \(.+\)"),
    ],
)
def test_a_file_that_torch_did_not_save_is_called_what_it_is(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(TensorFileError, match=rf"a\.pt {sentence}: copy it again$"):
        load_tensors(tmp_path / "a.pt", advice="copy it again")


def test_an_object_that_could_run_code_is_named_unless_allowed(tmp_path: Path) -> None:
    torch.save({**STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    with pytest.raises(TensorFileError, match=r"more than tensors and plain values, argparse\.Namespace: x") as caught:
        load_tensors(tmp_path / "a.pt", advice="x")
    assert caught.value.named == "argparse.Namespace"
    assert load_tensors(tmp_path / "a.pt", advice="x", allowed=[argparse.Namespace])["args"].lr == 1
    with pytest.raises(ValueError, match=r"there is no .*b\.pt"):
        load_tensors(tmp_path / "b.pt", advice="x")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_damage_is_one_sentence(tmp_path: Path, mmap: bool, zipped: bool) -> None:
    file, rng = tmp_path / "a.pt", random.Random(0)
    torch.save(STATE, file, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_tensors(file, advice="x", mmap=mmap)["weight"], STATE["weight"])
    whole, refused = file.read_bytes(), 0
    for _ in range(100):
        content = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.2 else whole)
        for _ in range(rng.randrange(1, 9)):
            content[rng.randrange(len(content)) : rng.randrange(len(content))] = rng.randbytes(1)
        file.write_bytes(content or b"x")
        try:
            load_tensors(file, advice="x", mmap=mmap)
        except TensorFileError as error:
            refused += str(error).startswith(str(file)) and "\n" not in str(error)
    assert refused > 50
