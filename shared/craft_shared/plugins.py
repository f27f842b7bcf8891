"""Plug-ins: what other installed packages add, found by their entry points, or a file of one's own.

What is wrong with one is said in one line. Loading one runs its code with all rights of the
process: installing a package, or naming a file, is the decision to trust it.

Source: Python Packaging User Guide, "Entry points specification".
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name
from typing import Any


class PluginError(Exception):
    """A plug-in cannot be used; the message is one line that names it and its package."""


@dataclass(frozen=True)
class Group:
    """A kind of plug-in.

    Attributes:
        name: of the entry points' group.
        kind: what messages call one of them.
        own: names that craftbox has itself; no plug-in can take one.
    """

    name: str
    kind: str
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plugin:
    """An entry point of a group; `str()` names it, where it is and the package."""

    group: Group
    entry: EntryPoint

    @property
    def name(self) -> str:
        """What options call it."""
        return self.entry.name

    @property
    def package(self) -> str:
        """The distribution that brings it, and its version."""
        found = self.entry.dist
        return f"{found.name} {found.version}" if found is not None else "unknown"

    def __str__(self) -> str:
        return f"{self.group.kind} '{self.name}' ({self.entry.value} of package {self.package})"

    def _load(self) -> Any:
        return self.entry.load()

    def load(self) -> Any:
        """Imports it.

        Raises:
            PluginError: that fails, or what is there cannot be called.
        """
        try:
            found = self._load()
        except Exception as error:
            raise PluginError(f"{self} cannot be loaded: {_words(error)}") from error
        if not callable(found):
            raise PluginError(f"{self} cannot be called")
        return found

    def problem(self) -> str:
        """Why it cannot be used; empty where it can."""
        try:
            _only(installed(self.group), self.group, self.name)
            self.load()
        except PluginError as error:
            return str(error)
        return ""

    @contextmanager
    def running(self, *let_through: type[Exception]) -> Iterator[None]:
        """Calls into the plug-in.

        Raises:
            PluginError: it failed, by an exception that is none of `let_through`.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, (PluginError, *let_through)):
                raise
            raise PluginError(f"{self} failed: {_words(error)}") from error


@dataclass(frozen=True)
class OwnFile(Plugin):
    """What a file of one's own holds, `FILE.py:NAME`; `str()` has the file's SHA-256 too."""

    @property
    def path(self) -> Path:
        """The file's."""
        return Path(self.entry.value.rpartition(":")[0])

    @property
    def digest(self) -> str:
        """Of the file."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]
        except OSError:
            return "unreadable"

    def __str__(self) -> str:
        return f"{self.group.kind} '{self.name}' ({self.entry.value}, {self.digest})"

    def _load(self) -> Any:
        # Under a name of its own, since dataclasses and pickles look their module up.
        module_name = f"craftbox_file_{hashlib.sha256(str(self.path).encode()).hexdigest()[:16]}"
        spec = spec_from_file_location(module_name, self.path)
        if spec is None or spec.loader is None:
            raise ImportError(f"'{self.path}' is no Python file")
        module = sys.modules[module_name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return resolve_name(f"{module_name}:{self.entry.value.rpartition(':')[2]}")


@dataclass(frozen=True)
class OwnFunction(Plugin):
    """A function of this program's; `str()` has the SHA-256 of its source, where that is there."""

    function: Any

    def __str__(self) -> str:
        try:
            source = inspect.getsource(self.function).encode()
        except (OSError, TypeError):
            return f"{self.group.kind} '{self.name}' ({self.entry.value})"
        digest = hashlib.sha256(source).hexdigest()[:12]
        return f"{self.group.kind} '{self.name}' ({self.entry.value}, {digest})"

    def _load(self) -> Any:
        return self.function

    @contextmanager
    def running(self, *let_through: type[Exception]) -> Iterator[None]:
        """Calls it; its failures are for who wrote it, as they are."""
        with super().running(*let_through, Exception):
            yield


def own_function(group: Group, function: Any) -> OwnFunction:
    """A function as a plug-in, under its own name."""
    name = getattr(function, "__name__", type(function).__name__)
    module = getattr(function, "__module__", "")
    return OwnFunction(group, EntryPoint(name, f"{module}:{name}", group.name), function)


def own_file(group: Group, text: str) -> OwnFile | None:
    """The file that `FILE.py:NAME` names, not yet looked at; None where that is no such text."""
    file, colon, name = text.rpartition(":")
    if not (colon and name and file.endswith(".py")):
        return None
    return OwnFile(group, EntryPoint(f"{Path(file).name}:{name}", text, group.name))


def installed(group: Group) -> list[Plugin]:
    """All plug-ins of a kind, by name. None of them is imported."""
    found = [Plugin(group, entry) for entry in entry_points(group=group.name)]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.package))


def find(group: Group, name: str) -> Plugin:
    """The plug-in of that name.

    Raises:
        PluginError: there is none, or more than one package brings it.
    """
    return _only(installed(group), group, name)


def listed(group: Group) -> list[dict[str, str]]:
    """All plug-ins of a kind as JSON-able rows; each is loaded, to tell whether it can be."""
    return [
        {
            "group": group.name,
            "name": plugin.name,
            "package": plugin.package,
            "entry_point": plugin.entry.value,
            "problem": plugin.problem(),
        }
        for plugin in installed(group)
    ]


def _only(plugins: Sequence[Plugin], group: Group, name: str) -> Plugin:
    found = [plugin for plugin in plugins if plugin.name == name]
    if found and name in group.own:
        raise PluginError(f"{found[0]} has the name of a {group.kind} of craftbox's own")
    if not found:
        names = sorted({*group.own, *(plugin.name for plugin in plugins)})
        there = f"there are {', '.join(names)}" if names else "none is installed"
        raise PluginError(
            f"no {group.kind} is called '{name}' (entry points '{group.name}'): {there}"
        )
    if len(found) > 1:
        packages = " and ".join(plugin.package for plugin in found)
        raise PluginError(
            f"{group.kind} '{name}' is brought by more than one package, {packages}: uninstall one"
        )
    return found[0]


def _words(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
