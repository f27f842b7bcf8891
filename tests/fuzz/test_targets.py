"""A few thousand mutations of good inputs, the same each time; scripts/fuzz goes on from there."""

import random
import re

import pytest

from fuzz.targets import TARGETS, Target

MUTATIONS = {"image": 1500, "codec": 20_000, "adapter": 8000}
HEADERS = {"codec": 8000, "adapter": 2000}
VALUES = (
    *(
        b"true",
        b"null",
        b"-1",
        b"0",
        b"2.0",
        b"1e999",
        b"NaN",
        b"1" + b"0" * 30,
        b"1" + b"0" * 4000,
    ),
    *(b'""', b'"1"', rb'"\ud800"', b"[]", b"[0]", b"[true, 0]", b"{}", b"[" + b"0," * 70 + b"0]"),
)


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a number, a piece cut out, doubled or of another."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.randint(1, 16))
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at:end] = bytes(end - at)
            case 2:
                changed[at:end] = chance.randbytes(end - at)
            case 3:
                del changed[at : at + chance.choice([1, 8, 10_000])]
            case 4:
                changed[at:at] = changed[at:end]
            case _:
                changed[at:end] = other[at:end]
    return bytes(changed)


def with_other_values(data: bytes, chance: random.Random) -> bytes:
    """One to three values of a safetensors header made others; its length is told as it is."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    for _ in range(chance.randint(1, 3)):
        found = chance.choice([*re.finditer(rb'-?\d+|\[[^]]*\]|\\?"[^"]*"|\{', header)])
        value = chance.choice(VALUES)
        if found[0].startswith(b"\\"):  # inside of the document, which is a text in the header
            value = value.replace(b"\\", rb"\\").replace(b'"', rb"\"")
        header = header[: found.start()] + value + header[found.end() :]
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of damaged TIFF
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_input_is_read_or_refused(name: str) -> None:
    target, chance = TARGETS[name], random.Random(1)
    for _ in range(MUTATIONS[name]):
        data = mutated(chance.choice(target.seeds), chance.choice(target.seeds), chance)
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{name} fails on {data!r}") from error


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_with_other_values_is_read_or_refused(name: str) -> None:
    target, chance = TARGETS[name], random.Random(1)
    for _ in range(HEADERS[name]):
        data = with_other_values(chance.choice(target.seeds), chance)
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{name} fails on {data!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good_inputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else mutating them tests the first check alone."""
    target: Target = TARGETS[name]
    module = target.run.__globals__
    for error in ("ImageError", "AdapterError"):
        monkeypatch.setitem(module, error, ZeroDivisionError)
    for seed in target.seeds:
        target.run(seed)
