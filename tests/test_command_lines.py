"""Both command lines: what help teaches, what a shell completes, what typos are told."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from craft_client.cli import app as craft
from craft_client.cli.root import ExitCode as ClientExitCode
from craft_server.cli import app as craft_server
from craft_server.cli.output import ExitCode as ServerExitCode

UsageError: Any = typer.BadParameter.__base__
ROOT = Path(__file__).parent.parent
APPS = {"craft": craft, "craft-server": craft_server}
MODULES = {"craft": "craft_client.cli", "craft-server": "craft_server.cli"}
# They write lines for scripts, or a file of another system, or serve until they are stopped.
WITHOUT_JSON = {
    "craft-server usage export",
    "craft-server deploy ray",
    "craft-server serve",
    "craft-server record",
    "craft-server replay",
}


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from walk(f"{name} {child}", inner)


COMMANDS = dict(
    entry for name, app in APPS.items() for entry in walk(name, typer.main.get_command(app))
)


def examples_of(command: Any) -> list[str]:
    lines = (command.epilog or "").splitlines()
    assert lines, "no epilog"
    assert lines[0] == "Examples:"
    return [line.strip() for line in lines[1:] if re.match(r" *craft(-server)? ", line)]


def parse(words: list[str]) -> None:
    """Parses a command as typed, to its end, without running it."""
    command: Any = COMMANDS[words[0]]
    name, rest = words[0], words[1:]
    while hasattr(command, "commands"):
        while rest[0].startswith("-"):
            assert any(rest[0] in option.opts for option in command.params), rest[0]
            rest = rest[1:]
        name, rest = rest[0], rest[1:]
        assert name in command.commands, name
        command = command.commands[name]
    command.make_context(name, rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_summary_words_for_each_parameter_and_examples_that_parse(name: str) -> None:
    command = COMMANDS[name]
    summary = (command.help or "").splitlines()[0]
    assert summary.endswith("."), summary
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help"
    examples = examples_of(command)
    assert 1 <= len(examples) <= 3
    for example in examples:
        assert example.startswith(f"{name} ") or example == name or " " not in name
        parse(shlex.split(example))


def test_an_example_with_an_option_that_is_none_does_not_parse() -> None:
    for words in (["craft", "tune", "--buget", "3"], ["craft", "tun"], ["craft", "-z", "models"]):
        with pytest.raises((UsageError, AssertionError)):
            parse(words)


@pytest.mark.parametrize(
    "name", [name for name, command in COMMANDS.items() if not hasattr(command, "commands")]
)
def test_every_command_of_results_has_json(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert ("--json" in options) == (name not in WITHOUT_JSON)


# --- first run and typos --------------------------------------------------------------------------


@pytest.mark.parametrize("name", APPS)
def test_without_arguments_three_commands_to_a_first_result_are_told(name: str) -> None:
    done = CliRunner().invoke(APPS[name], [], prog_name=name, env={"CRAFT_API_KEY": ""})
    assert done.exit_code == 0
    assert "three commands" in done.stdout
    told = re.findall(
        r"^  (?:CRAFT_API_KEY=\S+ )?(craft(?:-server)? .+?)(?:  |$)", done.stdout, re.M
    )
    assert len(told) >= 3
    for command in told[:3]:
        parse(shlex.split(command))
    assert f"{name} --help" in done.stdout


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("craft", ["tun"], "No such command 'tun'. Did you mean 'tune'?"),
        ("craft", ["image-sets", "shwo"], "No such command 'shwo'. Did you mean 'show'?"),
        ("craft", ["tune", "--buget", "3"], "No such option: --buget (Possible options: --budget"),
        ("craft-server", ["sreve"], "No such command 'sreve'. Did you mean 'serve'?"),
        ("craft-server", ["keys", "creat"], "No such command 'creat'. Did you mean 'create'?"),
        ("craft-server", ["serve", "--prot", "1"], "No such option: --prot"),
    ],
)
def test_typos_are_told_with_what_was_meant(name: str, words: list[str], told: str) -> None:
    done = CliRunner().invoke(APPS[name], words, prog_name=name, env={"COLUMNS": "120"})
    assert done.exit_code == 2
    assert done.stdout == ""
    assert told in done.stderr
    if "--prot" in words:
        assert "--port" in done.stderr


# --- completion -----------------------------------------------------------------------------------


def completed(name: str, line: str) -> list[str]:
    """What bash is given for a line, whose last word is incomplete."""
    words = line.split(" ")
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    env = {variable: "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = CliRunner().invoke(APPS[name], [], prog_name=name, env=env)
    assert done.exit_code == 0, done.output
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("craft ev", ["evaluate"]),
        ("craft tune --recipe s", ["spsa", "sim"]),
        ("craft zero-shot --split v", ["validation"]),
        ("craft-server serve --model poc", ["pocket"]),
        ("craft-server serve --model RN50-quick", ["RN50-quickgelu"]),
        ("craft-server plan --model poc", ["pocket"]),
        ("craft-server serve --profile f", ["flaky", "free-tier"]),
        ("craft-server budgets set abc --unit q", ["queries"]),
    ],
)
def test_a_shell_completes(line: str, expected: list[str]) -> None:
    assert completed(line.split()[0], line) == expected


def test_bash_completes_with_the_script_that_is_shown(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    program = tmp_path / "craft"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'craft'\n"
        "from craft_client.cli import app\napp(prog_name='craft')\n"
    )
    program.chmod(0o755)
    script = (
        'eval "$(craft --show-completion bash)"; complete -p craft; '
        "COMP_WORDS=(craft tune --rec); COMP_CWORD=2; _craft_completion craft; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert "-F _craft_completion craft" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "--recipe"


# --- start-up -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_help_imports_nothing_slow(name: str) -> None:
    slow = "numpy httpx matplotlib scipy torch sqlalchemy pydantic sklearn PIL fastapi yaml"
    slow += " rich.live cma jinja2"
    code = (
        "import json, sys\n"
        f"from {MODULES[name]} import app\n"
        f"app(['--help'], prog_name='{name}', standalone_mode=False)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "typer" in loaded
    assert not loaded & set(slow.split())


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codes"), [("craft", ClientExitCode), ("craft-server", ServerExitCode)]
)
def test_exit_codes_are_those_of_the_documentation(name: str, codes: Any) -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    documented = re.search(rf"^\| code \| `{name}`.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.M)
    assert documented
    rows = re.findall(r"^\| (\d+) \|", documented[1], re.M)
    assert [int(row) for row in rows] == sorted(codes)


def test_the_documentation_names_every_command_with_json() -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    for name, command in COMMANDS.items():
        if any("--json" in parameter.opts for parameter in command.params):
            assert f"`{name}`" in text, name


# --- help -----------------------------------------------------------------------------------------

LEAVES = [name for name, command in COMMANDS.items() if not hasattr(command, "commands")]


def helped(name: str, option: str) -> str:
    program, *words = name.split()
    done = CliRunner().invoke(
        APPS[program], [*words, option], prog_name=program, env={"COLUMNS": "80"}
    )
    assert done.exit_code == 0, done.output
    text: str = done.stdout
    prose = [line for line in text.splitlines() if not line.startswith(f"  {program} ")]
    assert [line for line in prose if len(line) > 80] == []
    assert not re.search(r"RANGE|<=|INTEGER| VALUE", text), "no words of a parser"
    return text


def options_in(text: str) -> list[str]:
    return re.findall(r"^  (--[a-z-]+)", text, re.M)


@pytest.mark.parametrize("name", LEAVES)
def test_help_is_short_first_and_whole_when_asked(name: str) -> None:
    command = COMMANDS[name]
    assert {parameter.name for parameter in command.params} >= set(command.first)
    short, whole = helped(name, "--help"), helped(name, "--help-all")
    needed = [one for one in command.params if one.required and one.opts[0].startswith("--")]
    assert len(options_in(short)) <= 5 + len([o for o in needed if o.name not in command.first])
    for parameter in command.params:
        shown = parameter.opts[0] if parameter.opts[0].startswith("--") else parameter.metavar
        assert (shown or parameter.name.upper()) in whole
    more = re.search(r"^(\d+) more options?: (.+) --help-all$", short, re.M)
    assert more, "--json, --help and --help-all at least"
    assert more[2] == name
    assert int(more[1]) == len(options_in(whole)) - len(options_in(short))
    assert short.index("Examples:") > short.index("Usage:")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in LEAVES])
def test_help_of_a_group_names_its_commands(name: str) -> None:
    text = helped(name, "--help")
    for inner in COMMANDS[name].commands:
        assert re.search(rf"^  {inner}  ", text, re.M)


def test_bounds_are_told_in_words() -> None:
    def words(name: str) -> str:
        return " ".join(helped(name, "--help-all").split())

    assert "Training pictures a class. (from 1; default: 16)" in words("craft tune")
    assert "Decimals to which numbers are rounded. (1 to 6)" in words("craft-server keys create")
    assert "(0 to 1; default: the adapter's own)" in words("craft predict")
