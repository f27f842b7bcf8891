"""A few thousand mutations of good inputs, the same each time; scripts/fuzz goes on from there."""

import random

import pytest

from fuzz.targets import TARGETS, Target

MUTATIONS = {"image": 1500, "codec": 20_000, "adapter": 8000}


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


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good_inputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else mutating them tests the first check alone."""
    target: Target = TARGETS[name]
    module = target.run.__globals__
    for error in ("ImageError", "AdapterError"):
        monkeypatch.setitem(module, error, ZeroDivisionError)
    for seed in target.seeds:
        target.run(seed)
