from __future__ import annotations

import pytest

from craft_server.engine.packs import Pack
from craft_server.plan.architecture import Architecture
from craft_server.plan.constants import TextRates
from craft_server.plan.text_work import multiply_adds, seconds
from craft_server.plan.workload import Texts

RATES = TextRates(packed_per_core=1e9, shared_per_core=5e8)


def architecture(width: int, layers: int = 12) -> Architecture:
    return Architecture("made up", width, layers, width, 224, "resnet", 1e9, 1000)


def test_two_layers_of_one_text_by_hand() -> None:
    pack = Pack(range(1), (1, 2), (0,), ((3, 4),))
    width = 8
    square = width**2
    # First layer: the shared tokens' queries, keys and values (own tokens' are remembered), and the
    # rest of the layer for all four. Last layer: keys and values of four, one end token.
    linear = 2 * 3 * square + 4 * 9 * square + 4 * 2 * square + square + 9 * square + square
    attention = (1 + 2 + 3 + 4) + 4
    assert multiply_adds(architecture(width, 2), pack) == linear + attention * 2 * width


def test_packs_run_on_as_many_cores_as_there_are() -> None:
    texts = Texts.of_length(100, 4)  # 405 tokens: five prompts a pack
    one, two = (seconds(architecture(256), RATES, texts, 40, cores) for cores in (1, 2))
    assert two == pytest.approx(one / 2)


def test_a_pack_left_over_keeps_one_core_waiting() -> None:
    texts = Texts.of_length(100, 4)
    two, three = (seconds(architecture(256), RATES, texts, 5 * n, 2) for n in (2, 3))
    assert three == pytest.approx(2 * two)


def test_a_single_pack_is_shared_where_the_tower_is_wide() -> None:
    texts = Texts.of_length(47, 3)
    alone, shared = (seconds(architecture(512), RATES, texts, 1, cores) for cores in (1, 2))
    assert alone == pytest.approx(shared)  # at half the rate, twice the cores
    narrow = architecture(256)
    assert seconds(narrow, RATES, texts, 1, 2) == seconds(narrow, RATES, texts, 1, 1)
