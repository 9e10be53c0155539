"""Mutated files for tools/fuzz.py: a reader with valid contents of its file, and what is changed in them."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOKEN = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|>[^<]+<|true|false|null')
"""What a text file is made of: numbers, strings and constants of JSON, texts of XML."""
ODD_TOKENS = (
    *(b"NaN", b"-1", b"0", b"0.5", b"1e999", b"-Infinity", b"9" * 40, b"null", b"true", b"[]", b"{}", b"[[[1]]]"),
    *(
        b'""',
        b'"../../etc/passwd"',
        b'"\\u0000"',
        b'"\xff\xfe"',
        b'"' + b"a" * 5000 + b'"',
        b"><",
        b">nan<",
        b"",
        b"\n",
    ),
)
ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Target:
    """A reader, and the file that it reads.

    Args:
        name: of the reader.
        file: what is mutated; other files that the reader needs lie around it, unchanged.
        contents: valid contents of the file, from which mutations start.
        read: reads the file.
        is_text: mutate tokens, not only bytes.
    """

    name: str
    file: Path
    contents: Sequence[bytes]
    read: Callable[[], object]
    is_text: bool = False


def mutate(contents: Sequence[bytes], draw: random.Random, is_text: bool) -> bytes:
    """One of the valid contents with one to eight changes of tokens (of text) or bytes."""
    data = bytearray(draw.choice(contents))
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        if is_text and draw.random() < 0.7:
            tokens = list(TOKEN.finditer(bytes(data)))
            if tokens:
                token = draw.choice(tokens)
                data[token.start() : token.end()] = draw.choice(ODD_TOKENS)
            continue
        start = draw.randrange(len(data) + 1)
        length = draw.choice((1, 2, 4, 16, 256))
        match draw.randrange(6):
            case 0 if data:
                data[start % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                order = draw.choice(("little", "big"))
                number = draw.choice(ODD_NUMBERS)
                data[start : start + 4] = number.to_bytes(4, order)
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = data[start : start + length] * draw.choice((1, 8))
            case 4:
                data[start:start] = draw.randbytes(length)
            case _:
                other = draw.choice(contents)
                data[start:] = other[draw.randrange(len(other) + 1) :]
    return bytes(data)


def content_of(target: Target, seed: int, sample: int) -> bytes:
    """The mutated file of one sample: the same for the same seed."""
    return mutate(target.contents, random.Random(f"{seed} {target.name} {sample}"), target.is_text)
