from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft_shared.plugins import Group, PluginError, find, installed, listed
from plugin_packages import write_package

THINGS = Group("craftbox.test_things", "thing", own=("mine",))
BOXES = Group("craftbox.test_boxes", "box")


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which packages are imported."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def thing(
    target: Path, package: str, code: str, *, name: str = "one", group: Group = THINGS
) -> None:
    module = f"plugin_{package}"
    write_package(target, package, {group.name: {name: f"{module}:thing"}}, **{module: code})


def test_a_plug_in_is_found_by_its_name_and_loaded(target: Path) -> None:
    thing(target, "good", "def thing(x): return x + 1")
    plugin = find(THINGS, "one")
    assert str(plugin) == "thing 'one' (plugin_good:thing of package good 0.1.0)"
    assert "plugin_good" not in sys.modules, "nothing is imported before it is used"
    assert plugin.load()(1) == 2
    assert plugin.problem() == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError: No module"),
        ("def other(): pass", "cannot be loaded: AttributeError"),
        (
            "raise ValueError('first line\\nsecond line')",
            "cannot be loaded: ValueError: first line",
        ),
        ("thing = 3", "cannot be called"),
    ],
)
def test_a_broken_one_is_told_in_one_line_with_its_package(
    target: Path, code: str, words: str
) -> None:
    thing(target, "bad", code)
    with pytest.raises(PluginError) as told:
        find(THINGS, "one").load()
    message = str(told.value)
    assert message.startswith("thing 'one' (plugin_bad:thing of package bad 0.1.0) ")
    assert words in message
    assert "\n" not in message
    assert find(THINGS, "one").problem() == message


def test_an_unknown_name_is_told_with_those_that_there_are(target: Path) -> None:
    thing(target, "good", "def thing(): pass")
    with pytest.raises(PluginError, match=r"no thing is called 'two'.*there are mine, one$"):
        find(THINGS, "two")
    with pytest.raises(PluginError, match="none is installed"):
        find(BOXES, "two")


def test_two_packages_with_one_name_are_both_told(target: Path) -> None:
    thing(target, "first", "def thing(): pass")
    thing(target, "second", "def thing(): pass")
    with pytest.raises(PluginError, match=r"first 0.1.0 and second 0.1.0: uninstall one"):
        find(THINGS, "one")
    assert all("more than one" in row["problem"] for row in listed(THINGS))


def test_none_can_take_the_place_of_craftboxs_own(target: Path) -> None:
    thing(target, "thief", "def thing(): pass", name="mine")
    (row,) = listed(THINGS)
    assert "has the name of a thing of craftbox's own" in row["problem"]
    assert len(installed(THINGS)) == 1


def test_a_failure_inside_is_told_unless_it_is_let_through(target: Path) -> None:
    thing(target, "good", "def thing(): pass")
    plugin = find(THINGS, "one")
    failed = r"package good 0.1.0\) failed: ZeroDivisionError"
    with pytest.raises(PluginError, match=failed), plugin.running():
        raise ZeroDivisionError
    with pytest.raises(KeyError), plugin.running(KeyError):
        {}["x"]
