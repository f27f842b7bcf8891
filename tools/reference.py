"""Writes docs/reference/*.md: commands, settings, problems and HTTP calls, as the code has them.

    python tools/reference.py

A test compares the pages with what this would write. It knows how commands, settings, problem types
and the API's description tell of themselves; it says nothing of its own about any of them.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from craft_shared.command_help import bounds

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
MADE_BY = "<!-- Written by tools/reference.py: change what it describes, and run it again. -->"
PLAIN_TYPES = {
    "int": "whole number",
    "integer": "whole number",
    "float": "number",
    "str": "text",
    "string": "text",
}
METHODS = ("get", "post", "put", "patch", "delete")


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    return {
        "commands.md": commands(),
        "settings.md": settings(),
        "problems.md": problems(),
        "http.md": http_calls(),
    }


# --- Markdown ---------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Text that stands in a table: on one line, with nothing in it that Markdown would take."""
    plain = " ".join(text.split())
    parts = re.split(r"(`[^`]*`)", plain)
    parts[::2] = [re.sub(r"([|<>*\[\]{}$\\])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "".join(parts)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, without its columns in which no row says anything; nothing where there is no row."""
    shown = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    if not shown:
        return []
    return [
        "| " + " | ".join(columns[number] for number in shown) + " |",
        "|" + "---|" * len(shown),
        *("| " + " | ".join(row[number] for number in shown) + " |" for row in rows),
        "",
    ]


def page(title: str, lead: str, lines: Sequence[str]) -> str:
    """A page of one title."""
    text = "\n".join([f"# {title}", "", MADE_BY, "", textwrap.fill(lead, 100), "", *lines])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def described(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring's words, and what its section `Attributes` says of each."""
    words, _, section = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if begins := re.match(r"    (\w+): (.*)", line):
            name, found[begins[1]] = begins[1], begins[2]
        elif line.startswith("     ") and name:
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return words.strip(), found


def prose(text: str) -> list[str]:
    """A docstring's paragraphs; those that are indented are literal."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        literal = paragraph.startswith("    ")
        body = inspect.cleandoc(paragraph) if literal else paragraph
        lines += ["```text", body, "```", ""] if literal else [cell(body), ""]
    return lines


# --- commands ---------------------------------------------------------------------------------


def commands() -> str:
    """All commands of both programs, with all their arguments and options."""
    from craft_client.cli import app as craft
    from craft_server.cli import app as craft_server

    lines: list[str] = []
    for name, app in (("craft", craft), ("craft-server", craft_server)):
        for path, command in walk(typer.main.get_command(app), (name,)):
            lines += _command(path, command)
    lead = (
        "Every command of `craft`, the client, and of `craft-server`, with every argument and "
        "option, as `--help-all` shows them. An option that has an environment variable is read "
        "from there where it is not given."
    )
    return page("Commands", lead, lines)


def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and all below it, with the words that one types."""
    yield path, command
    for name, one in below(command).items():
        if not one.hidden:
            yield from walk(one, (*path, name))


def below(command: Any) -> dict[str, Any]:
    """A group's commands by name; none of a command that is no group."""
    if not hasattr(command, "list_commands"):
        return {}
    context = command.make_context(command.name, [], resilient_parsing=True)
    return {name: command.get_command(context, name) for name in command.list_commands(context)}


def parameters(command: Any) -> list[Any]:
    """A command's arguments and options that are shown."""
    return [one for one in command.params if not getattr(one, "hidden", False)]


def _command(path: tuple[str, ...], command: Any) -> list[str]:
    context = command.make_context(path[-1], [], resilient_parsing=True)
    shown = parameters(command)
    arguments = [one for one in shown if one.param_type_name == "argument"]
    words = " ".join(
        [
            *path,
            *(["[OPTIONS]"] if len(shown) > len(arguments) else []),
            *(one.make_metavar(context) for one in arguments),
            *(["COMMAND"] if below(command) else []),
        ]
    )
    rows = [
        [
            _names(one, context),
            cell(_value(one, context)),
            cell(_default(one)),
            cell((one.help or "") + (f" `{one.envvar}` in the environment." if one.envvar else "")),
        ]
        for one in shown
    ]
    title = f"{'#' * (1 + min(len(path), 3))} {' '.join(path)}"
    usage = ["```text", words, "```", ""]
    columns = ("argument or option", "value", "default", "what")
    examples = re.findall(r"^ *(craft(?:-server)? .+)$", command.epilog or "", re.MULTILINE)
    shell = ["```sh", *examples, "```", ""]
    return [title, "", *prose(command.help or ""), *usage, *table(columns, rows), *shell]


def _names(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.make_metavar(context)}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _value(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
        return "required" if parameter.required else ""
    name = str(parameter.type.name).strip("<>").lower().removesuffix(" range")
    words = parameter.metavar or PLAIN_TYPES.get(name, name)
    if choices := getattr(parameter.type, "choices", ()):
        words = "one of " + ", ".join(map(str, choices))
    notes = ["repeatable"] if parameter.multiple else []
    notes += ["required"] if parameter.required else []
    return ", ".join(filter(None, [words, bounds(parameter), *notes]))


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    shown = parameter.show_default and not getattr(parameter, "is_flag", False)
    if not shown or parameter.required or parameter.default in (None, "", (), []):
        return ""
    return f"`{parameter.default}`"


# --- settings ---------------------------------------------------------------------------------


def settings() -> str:
    """All settings of the server."""
    rows = [
        [f"`{variable}`", cell(kind), cell(default), cell(words)]
        for variable, kind, default, words in server_settings()
    ]
    lead = (
        "Every setting of the server: an environment variable, or a file of that name in lower "
        "case in the folder `CRAFT_SECRETS_DIR` (`/run/secrets`). Most are options of "
        "`craft-server` too. Options come first, then the environment, then files."
    )
    return page("Settings", lead, table(("variable", "value", "default", "what"), rows))


def server_settings() -> list[tuple[str, str, str, str]]:
    """Of each setting: its variable, its type and bounds, its default, and what it is."""
    from craft_server.settings import Settings

    prefix = str(Settings.model_config["env_prefix"])
    return list(_fields(Settings, prefix, {}))


def _fields(
    model: type[BaseModel], prefix: str, defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    words = described(model.__doc__ or "")[1]
    for name, field in model.model_fields.items():
        default = defaults.get(name, field.default)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name.upper()}__", default.model_dump())
            continue
        shown = "" if default in (None, "", (), PydanticUndefined) else f"`{default}`"
        yield f"{prefix}{name.upper()}", _kind(field), shown, words.get(name, "")


def _kind(field: FieldInfo) -> str:
    text = str(field.annotation)
    choices = re.search(r"Literal\[(.*?)\]", text)
    if choices:
        return "one of " + ", ".join(choices[1].replace("'", "").split(", "))
    kinds = {"int": "whole number", "float": "number", "Path": "path", "Secret": "text, a secret"}
    kind = next((word for name, word in kinds.items() if re.search(rf"\b{name}", text)), "text")
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    told = [
        f"{words} {getattr(bound, name)}"
        for bound in field.metadata
        for name, words in bounds.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([kind, *told])


# --- problems ---------------------------------------------------------------------------------


def problems() -> str:
    """All problem types."""
    from craft_client import exceptions
    from craft_shared.problems import PROBLEM_TYPES, TYPE_PREFIX

    raised = {
        one.kind.slug: name
        for name, one in vars(exceptions).items()
        if inspect.isclass(one)
        and issubclass(one, exceptions.ProblemError)
        and getattr(one, "kind", None)
    }
    rows = [
        [
            f"`{kind.slug}`",
            str(kind.status),
            f"`{raised[kind.slug]}`" if kind.slug in raised else "`ProblemError`",
            cell(kind.title),
            cell(kind.remedy),
        ]
        for kind in PROBLEM_TYPES.values()
    ]
    lead = (
        "Every refusal and failure is `application/problem+json` (RFC 9457) with a `type` that "
        f"never changes: `{TYPE_PREFIX}` and the name below. The Python client raises one "
        "exception for each, in `craft_client.exceptions`; programs should look at the type, never "
        "at the words."
    )
    columns = ("problem", "status", "exception", "means", "remedy")
    return page("Problems", lead, table(columns, rows))


# --- HTTP -------------------------------------------------------------------------------------


def description() -> dict[str, Any]:
    """The API's description, as the server gives it at `/openapi.json`."""
    from craft_server.app import create_app
    from craft_server.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        nothing = Settings(data_dir=Path(folder), database_url=None, profile=None)
        # The description does not depend on the model, so that none need be loaded.
        engine: Any = SimpleNamespace(name="pocket")
        app = create_app(nothing, engine)
        document = app.openapi()
        services = app.state.services
        services.lease.close()
        services.database.close()
    return document


def http_calls() -> str:
    """All HTTP calls, and the documents that they take and give."""
    document = description()
    lines: list[str] = []
    for tag in document["tags"]:
        lines += [f"## {tag['name'].capitalize()}", "", cell(tag["description"]), ""]
        for path, operations in document["paths"].items():
            for method in METHODS:
                if tag["name"] in operations.get(method, {}).get("tags", ()):
                    lines += _operation(method.upper(), path, operations[method])
    lines += ["## Documents", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    lead = (
        "Every call of the API, from its description (OpenAPI 3.1). A running server gives the "
        "description itself at `/openapi.json`, with the same examples, and shows it at `/docs`. "
        "Calls take the key as `Authorization: Bearer craft_...`; the lines below find it in "
        "`CRAFT_API_KEY`, and the server's address in `CRAFT_URL`."
    )
    return page("HTTP API", lead, lines)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"### {method} {path}", ""]
    lines += [f"`{operation['operationId']}`. {cell(operation['summary'])}.", ""]
    for paragraph in re.split(r"\n\s*\n", operation.get("description", "")):
        lines += [cell(paragraph), ""]
    rows = [
        [
            f"`{one['name']}`",
            one["in"],
            cell(_type(one["schema"])),
            cell(one.get("description", "")),
        ]
        for one in operation.get("parameters", [])
    ]
    lines += table(("parameter", "in", "value", "what"), rows)
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        lines += [f"Takes {_contents(body)}.", ""]
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            content = _contents(answer.get("content", {}))
            words = cell(answer["description"]).removesuffix(".")
            lines += [f"Answers {status}: {words}" + (f" ({content})." if content else "."), ""]
    lines += ["```sh", _curl(method, path, operation), "```", "", *_answer(operation)]
    refused = [
        slug
        for status, answer in operation["responses"].items()
        if not status.startswith("2")
        for slug in re.findall(r"`([a-z-]+)`:", answer["description"])
    ]
    if refused:
        lines += [f"Problems: {', '.join(f'`{slug}`' for slug in refused)}.", ""]
    return lines


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """The call as a line of curl, with the description's examples."""
    query = []
    for one in operation.get("parameters", []):
        example = one["schema"].get("examples", [""])[0]
        path = path.replace(f"{{{one['name']}}}", example) if one["in"] == "path" else path
        query += [f"{one['name']}={example}"] if one["in"] == "query" and one["required"] else []
    words = ["curl"] if method == "GET" else ["curl", "-X", method]
    words.append(f'"$CRAFT_URL{path}{"?" if query else ""}{"&".join(query)}"')
    if "401" in operation["responses"]:
        words.append('-H "Authorization: Bearer $CRAFT_API_KEY"')
    for media_type, body in list(operation.get("requestBody", {}).get("content", {}).items())[:1]:
        words.append(f"-H 'Content-Type: {media_type}'")
        if "example" in body:
            words.append(f"-d {shlex.quote(json.dumps(body['example']))}")
        else:
            words.append("--data-binary @adapter.safetensors")
    return " \\\n  ".join(
        [" ".join(words[:-1]), words[-1]] if len(words) > 4 else [" ".join(words)]
    )


def _answer(operation: Mapping[str, Any]) -> list[str]:
    """What is answered if all is well, where that is not nothing."""
    for status, answer in sorted(operation["responses"].items(), reverse=True):
        for content in answer.get("content", {}).values() if status.startswith("2") else ():
            if isinstance(example := content.get("example"), str):
                return ["```text", example.rstrip("\n"), "```", ""]
            if isinstance(example, dict):
                fields = (
                    f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in example.items()
                )
                return ["```json", "{", ",\n".join(fields), "}", "```", ""]
            if example is not None:
                return ["```json", json.dumps(example), "```", ""]
    return []


def _contents(content: Mapping[str, Any]) -> str:
    return ", or ".join(
        f"`{media_type}`" + (f": {_type(what['schema'])}" if "$ref" in what["schema"] else "")
        for media_type, what in content.items()
    )


def _schema(name: str, schema: Mapping[str, Any]) -> list[str]:
    words, fields = described(schema.get("description", ""))
    required = schema.get("required", ())
    rows = [
        [
            f"`{field}`",
            cell(_type(value)),
            "" if field in required else f"`{json.dumps(value.get('default'))}`",
            cell(fields.get(field, value.get("description", ""))),
        ]
        for field, value in schema.get("properties", {}).items()
    ]
    lines = [f"### {name}", ""]
    for paragraph in re.split(r"\n\s*\n", words):
        lines += [cell(paragraph), ""]
    return [*lines, *table(("field", "value", "default", "what"), rows)]


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = str(schema.get("format") or schema.get("type", "any"))
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
        "minLength": "length at least",
        "maxLength": "length at most",
    }
    told = [f"{words} {schema[bound]}" for bound, words in bounds.items() if bound in schema]
    return ", ".join([kind, *told])


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
