from __future__ import annotations

from pathlib import Path

import pytest

from craft_server.output_policies import OUTPUT_POLICIES, Asker, output_policy
from craft_server.policy import Policy
from craft_shared.plugins import PluginError
from craft_shared.wire import Output
from plugin_packages import write_package

ASKER = Asker("lab", "abcdefgh", "pocket")
CODE = """
from craft_server.policy import Policy
from craft_shared.wire import Output

def same(asker, policy): return policy
def everything(asker, policy): return Policy()
def label(asker, policy): return Policy(Output(level="label"), 3)
def nothing(asker, policy): return None
def fails(asker, policy): raise KeyError(asker.owner)
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("same", "everything", "label", "nothing", "fails")
    group = {name: f"plugin_policies:{name}" for name in names}
    write_package(tmp_path, "policies", {OUTPUT_POLICIES.name: group}, plugin_policies=CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_without_a_name_keys_have_their_own_policies() -> None:
    policy = Policy(Output(level="label"))
    assert output_policy(None)(ASKER, policy) is policy


def test_a_plug_in_may_narrow_a_policy() -> None:
    assert output_policy("label")(ASKER, Policy()) == Policy(Output(level="label"), 3)
    assert output_policy("same")(ASKER, Policy()) == Policy()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("everything", "would show a key more than its own policy does"),
        ("label", "would show a key more"),
        ("nothing", "returned a NoneType, not a Policy"),
        ("fails", "failed: KeyError: 'lab'"),
    ],
)
def test_one_that_widens_or_fails_shows_nothing(name: str, words: str) -> None:
    narrow = output_policy(name)
    with pytest.raises(PluginError, match=rf"package policies 0.1.0\) {words}"):
        narrow(ASKER, Policy(Output(level="label"), prompts_per_image_set=2))


LEVELS = {
    "all": Output(),
    "2 decimals": Output(decimals=2),
    "noisy": Output(noise=0.5),
    "top 5": Output(level="top_k", k=5),
    "top 2": Output(level="top_k", k=2),
    "probs": Output(level="probs", decimals=2),
    "2 probs": Output(level="probs", decimals=2, k=2),
    "label": Output(level="label"),
}
WITHIN = {
    "all": {"all"},
    "2 decimals": {"all", "2 decimals"},
    "noisy": {"all", "noisy"},
    "top 5": {"all", "top 5"},
    "top 2": {"all", "top 5", "top 2"},
    "probs": {"all", "probs"},
    "2 probs": {"all", "probs", "top 5", "top 2", "2 probs"},
    "label": set(LEVELS) - {"noisy"},
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_within_those_that_are_as_fine(name: str) -> None:
    found = {other for other in LEVELS if Policy(LEVELS[name]).within(Policy(LEVELS[other]))}
    assert found == WITHIN[name]
