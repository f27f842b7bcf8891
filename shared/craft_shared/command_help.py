"""Help of both command lines, in plain text: what most people need first, all of it when asked."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_WIDEST = 100  # columns in which prose is read with ease
_NAMES = 24  # columns for an option's name
_MANY = 5  # options in a short help
_NOBODYS = 10**15  # a bound that nobody comes near
_VALUES = {
    **dict.fromkeys(("int", "integer"), "N"),
    **dict.fromkeys(("str", "string", "text"), "TEXT"),
    **dict.fromkeys(("path", "file", "directory"), "PATH"),
    **{"float": "X", "choice": "NAME"},
}


def of_command(command: Any, ctx: Any, *, first: Sequence[str], whole: bool) -> str:
    """A command's help: with the parameters `first`, or as a whole."""
    arguments, options = _parameters(command, ctx)
    described = _paragraphs(command)
    shown = options if whole else _first(options, first)
    panels: dict[str, list[Any]] = {}
    for one in shown:
        panels.setdefault((whole and one.rich_help_panel) or "Options", []).append(one)
    lines = [command.get_usage(ctx), ""]
    lines += _joined(described if whole else described[:1])
    lines += _section("Arguments", (_parameter(one, whole=whole) for one in arguments))
    for name in sorted(panels, key=lambda name: name != "Options"):
        lines += _section(name, (_parameter(one, whole=whole) for one in panels[name]))
    if left := len(options) - len(shown):
        more = f"{left} more option{'s' if left > 1 else ''}: {ctx.command_path} --help-all"
        lines += [more, ""]
    return "\n".join([*lines, *_epilog(command)])


def of_group(group: Any, ctx: Any) -> str:
    """The help of a group: its commands, and its own options."""
    lines = [group.get_usage(ctx), "", *_joined(_paragraphs(group))]
    panels: dict[str, list[tuple[str, str]]] = {}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if not command.hidden:
            about = next(iter(_paragraphs(command)), "")
            panels.setdefault(command.rich_help_panel or "Commands", []).append((name, about))
    for name, commands in panels.items():
        lines += _section(name, commands)
    options = _parameters(group, ctx)[1]
    lines += _section("Options", (_parameter(one, whole=True) for one in options))
    return "\n".join([*lines, *_epilog(group)])


def bounds(parameter: Any) -> str:
    """Which numbers a parameter takes: `1 to 64`; nothing where any will do."""
    least, most = getattr(parameter.type, "min", None), getattr(parameter.type, "max", None)
    if most is not None and most >= _NOBODYS:
        most = None
    if least is None and most is None:
        return ""
    if most is None:
        return f"from {least:,g}" if isinstance(least, float) else f"from {least:,}"
    return f"up to {most:,}" if least is None else f"{least:,} to {most:,}"


def _parameters(command: Any, ctx: Any) -> tuple[list[Any], list[Any]]:
    """Arguments, and options with that for help last."""
    shown = [one for one in command.get_params(ctx) if not getattr(one, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    return arguments, [one for one in shown if one not in arguments]


def _first(options: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Options that are named, and must be given; without names those that stand in no panel."""
    if names:
        by_name = {one.name: one for one in options}
        chosen = [by_name[name] for name in names if name in by_name]
    else:
        chosen = [one for one in options if one.rich_help_panel is None and not _is_help(one)]
        chosen = chosen[:_MANY]
    needed = [one for one in options if one.required and one not in chosen]
    return [*needed, *chosen]


def _is_help(option: Any) -> bool:
    return option.name in ("help", "help_all")


def _parameter(parameter: Any, *, whole: bool) -> tuple[str, str]:
    """What stands on the left, and on the right: of a short help the first paragraph."""
    about = _about(parameter, whole=whole)
    if parameter.param_type_name == "argument":
        return parameter.metavar or str(parameter.name).upper(), about
    names = ", ".join(parameter.opts)
    if parameter.secondary_opts:
        names = f"{names}/{', '.join(parameter.secondary_opts)}"
    if parameter.is_flag:
        return names, about
    kind = str(parameter.type.name).strip("<>").lower().removesuffix(" range")
    return f"{names} {parameter.metavar or _VALUES.get(kind, 'VALUE')}", about


def _about(parameter: Any, *, whole: bool) -> str:
    default = parameter.show_default
    if not isinstance(default, str):
        is_value = default and parameter.default not in (None, "", (), [], False)
        default = str(parameter.default) if is_value and not parameter.required else ""
    notes = [
        "required" if parameter.required and parameter.param_type_name == "option" else "",
        ", ".join(map(str, getattr(parameter.type, "choices", ()))),
        bounds(parameter),
        f"default: {default}" if default else "",
        str(parameter.envvar or ""),
    ]
    told = "; ".join(note for note in notes if note)
    text = " ".join(_paragraphs(parameter)[: None if whole else 1])
    return f"{text} ({told})" if told else text


def _paragraphs(command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph]


def _joined(paragraphs: Iterable[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        yield from _wrapped(paragraph, "  ")
        yield ""


def _section(title: str, entries: Iterable[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    gap = " " * (_NAMES + 4)
    for name, about in entries:
        head = f"  {name}"
        if len(head) > len(gap) - 2:
            lines += [head, *_wrapped(about, gap)]
        else:
            text = _wrapped(about, gap)
            lines += [f"{head:<{len(gap)}}{text[0].strip()}" if text else head, *text[1:]]
    return [f"{title}:", *lines, ""] if lines else []


def _epilog(command: Any) -> list[str]:
    lines: list[str] = []
    for line in (command.epilog or "").split("\n"):
        lines += [line] if not line or line.startswith(" ") else _wrapped(line, "")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(_WIDEST, max(shutil.get_terminal_size().columns, len(indent) + 30))
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
