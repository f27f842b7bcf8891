"""The words of docs/: blocks of code, names, variables, links and the pages that are generated."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from collections import deque
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import reference
from craft_client.cli import app as craft
from craft_server.cli import app as craft_server
from doc_pages import DOCS, GENERATED, NAMES, PAGES, ROOT, Block, blocks

# Programs that are no part of craftbox.
OTHERS = {
    *("cat", "chmod", "cp", "curl", "docker", "export", "hf", "install", "kubectl", "mkdir", "mv"),
    *("openssl", "runuser", "systemctl", "useradd"),
    *("npx", "openapi-python-client", "pip", "sed", "serve", "source", "umask"),
}


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_a_block_is_of_a_kind_that_is_checked(block: Block) -> None:
    directive = block.language.startswith("{")
    kinds = ("sh", "python", "js", "ts", "toml", "yaml", "json", "text")
    assert directive or block.language in kinds


# --- shell ------------------------------------------------------------------------------------


@cache
def tree(name: str) -> Any:
    return typer.main.get_command(craft if name == "craft" else craft_server)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell block, as words without variables set before them."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def check_words(words: list[str], folder: Path = ROOT) -> None:
    """That a command exists and has the options that it is given, wherever it is named."""
    program, *rest = words
    if program in ("craft", "craft-server"):
        check_craft(program, rest)
    elif program == "python3" and rest[0] == "-m":
        assert find_spec(rest[1]), f"there is no module '{rest[1]}'"
    elif program in ("python", "python3"):
        check_script(folder, rest)
    elif "/" in program:
        assert (ROOT / program).exists(), program
    else:
        assert program in OTHERS, f"'{program}' is not known here"
        for index, word in enumerate(rest):
            if word in ("craft", "craft-server") and index + 1 < len(rest):
                check_craft(word, rest[index + 1 :])


def check_craft(program: str, words: list[str]) -> None:
    command = tree(program)
    while words and not words[0].startswith("-") and (known := reference.below(command)):
        name, *words = words
        assert name in known, f"{program} has no command '{name}'"
        command = known[name]
    options = {"--help", "--help-all"}.union(
        *([*one.opts, *one.secondary_opts] for one in command.params if one.opts)
    )
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{command.name} has no option '{word}'"


def check_script(folder: Path, words: list[str]) -> None:
    script = folder / words[0]
    assert script.exists(), f"there is no '{words[0]}'"
    text = script.read_text()
    for imported in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE):
        beside = script.with_name(f"{imported}.py")
        text += beside.read_text() if beside.exists() else ""
    own = words[1 : words.index("--")] if "--" in words else words[1:]
    for word in own:
        if word.startswith("--"):
            assert re.search(rf'"{re.escape(word)}"', text), f"{script.name} has no '{word}'"


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_shell_parses_and_its_commands_and_options_exist(block: Block) -> None:
    parsed = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    folder = ROOT
    for words in commands(block.text):
        if words[0] == "cd":
            folder /= words[1]
            assert folder.is_dir(), folder
        else:
            check_words(words, folder)


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_a_note_behind_a_command_fits_beside_it(block: Block) -> None:
    # So many characters has a line of the site at 1,280 pixels.
    assert [line for line in block.text.splitlines() if " # " in line and len(line) > 92] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_sentence_is_taken_for_a_list(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\w[^\n]*[a-z,]\n\d+\. [^\n]*", prose, re.MULTILINE) == []


def test_every_recorded_result_and_picture_is_named_by_a_page() -> None:
    told = "".join(page.read_text() for page in PAGES)
    files = [
        *(ROOT / "benchmarks/results").glob("*.json"),
        *DOCS.glob("*.png"),
        *DOCS.glob("*.svg"),
    ]
    assert len(files) > 20
    assert [file.name for file in files if file.name not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_a_sentence_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`((?:craft|craft-server) [^`]+)`", prose):
        words = shlex.split(code.replace("\n", " "))
        check_craft(words[0], words[1:])


def known_options() -> set[str]:
    """The options of all commands and of all scripts in the repository."""
    options = {"--help", "--help-all"} | {
        option
        for program in ("craft", "craft-server")
        for _, command in reference.walk(tree(program), (program,))
        for one in command.params
        for option in (*one.opts, *one.secondary_opts)
    }
    for folder in ("benchmarks", "examples", "tools"):
        for script in (ROOT / folder).rglob("*.py"):
            options.update(re.findall(r'"(--[a-z][a-z-]*)"', script.read_text()))
    return options


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_in_a_sentence_exist(page: Path) -> None:
    told = {
        option
        for code in re.findall(r"(?<!`)`(--[^`]+)`", page.read_text())
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", code)
    }
    assert told - known_options() == set()


@pytest.mark.parametrize("page", ["choosing.md", "counting.md"])
def test_figures_are_those_that_were_measured(page: str) -> None:
    sources = ("evidence/results.md", "output-levels.md")
    measured = "\n".join((DOCS / name).read_text() for name in sources)
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+|\b\d+\.\d{2}\b", (DOCS / page).read_text())
    assert [figure for figure in figures if figure not in measured] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("craft tun --data DIR", "has no command 'tun'"),
        ("CRAFT_URL=x craft tune --dat DIR", "has no option '--dat'"),
        ("true && craft-server keys creat", "is not known here"),
        ("python benchmarks/nothing.py", "there is no"),
        ("python examples/own_tuner.py --nothing 1", "has no '--nothing'"),
        ("docker compose exec server craft-server keys list --nothing", "has no option"),
        ("craft usage | craft nothing", "has no command 'nothing'"),
    ],
)
def test_what_does_not_exist_is_found(line: str, said: str) -> None:
    found = list(commands(f"{line}\n"))
    with pytest.raises(AssertionError, match=said):
        deque(map(check_words, found), maxlen=0)


# --- Python, TOML, YAML, JSON -----------------------------------------------------------------


def resolve(dotted: str) -> Any:
    """The module, class, function or attribute of that name."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            fields = {
                **getattr(found, "model_fields", {}),
                **getattr(found, "__dataclass_fields__", {}),
                **getattr(found, "__annotations__", {}),
            }
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AttributeError(f"there is no '{dotted}'")


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles_and_what_it_imports_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and GENERATED not in str(node.module):
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                resolve(alias.name)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_dotted_names_are_there(page: Path) -> None:
    text = re.sub(r"^```(?!\{eval-rst).*?^```$", "", page.read_text(), flags=re.M | re.S)
    for name in re.findall(r"\b(craft_(?:client|server|shared)(?:\.\w+)+)", text):
        if not (ROOT / name.partition(".")[0].removeprefix("craft_") / name).exists():
            resolve(name)


def test_a_name_that_is_not_there_is_found() -> None:
    with pytest.raises(AttributeError):
        resolve("craft_client.blackbox.BlackBox.nothing")


@pytest.mark.parametrize("block", blocks("toml", "yaml", "json"), ids=str)
def test_configuration_parses(block: Block) -> None:
    parse = tomllib.loads if block.language == "toml" else yaml.safe_load
    assert parse(block.text)


# --- names, links, variables ------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        file = (page.parent / target).resolve()
        assert file.exists(), target
        # The site has the pages in docs/ alone; of other files readers get a copy.
        inside = file.suffix != ".md" or file.is_relative_to(DOCS)
        assert inside or page == ROOT / "README.md", f"{target} is no page of the site"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\b((?:benchmarks|examples|scripts|tests|tools)/[\w./-]+)", text):
        assert (ROOT / name.rstrip(".")).exists(), name


def variables_of(folders: list[str], pattern: str) -> set[str]:
    """The CRAFT_ variables that the sources name."""
    return {
        name
        for folder in folders
        for file in (ROOT / folder).rglob(pattern)
        for name in re.findall(r"\bCRAFT_[A-Z][A-Z_]*[A-Z]\b", file.read_text())
    }


def settings() -> set[str]:
    return {variable for variable, *_ in reference.server_settings()}


def test_each_variable_that_is_read_is_documented() -> None:
    # Not a variable, but where tests keep what the code calls so.
    read = settings() | variables_of(["client", "shared", "server"], "*.py") - {"CRAFT_LISTS"}
    told = {name for page in PAGES for name in re.findall(r"\bCRAFT_[A-Z_]+\b", page.read_text())}
    assert read - told == set()


def test_each_variable_on_a_page_is_read() -> None:
    read = settings() | variables_of(["client", "shared", "server", "tests/e2e"], "*.py")
    read |= variables_of(["docs/.."], "docker-compose.yml")
    told = {
        name for page in PAGES for name in re.findall(r"\bCRAFT_[A-Z_]+[A-Z]\b", page.read_text())
    }
    assert told - read == {"CRAFT_NAME"}  # stands for any


# --- the pages that are generated -------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return reference.pages()


@pytest.mark.parametrize("name", ["commands.md", "settings.md", "problems.md", "http.md"])
def test_a_reference_page_is_what_the_code_says(written: dict[str, str], name: str) -> None:
    present = (DOCS / "reference" / name).read_text()
    assert present == written[name], "Run: python tools/reference.py"


def test_each_call_has_a_line_of_curl_and_its_answer() -> None:
    sections = re.split("^### ", (DOCS / "reference/http.md").read_text(), flags=re.MULTILINE)[1:]
    calls = [one for one in sections if re.match("(GET|POST|PUT|PATCH|DELETE) ", one)]
    assert len(calls) > 40
    for call in calls:
        title = call.partition("\n")[0]
        (line,) = re.findall("^```sh\n(curl .*?)^```", call, re.MULTILINE | re.DOTALL)
        assert "{" not in line.partition("-d ")[0], f"{title}: a parameter has no example"
        without = "Answers 204" in call
        assert without == (re.search("^```(json|text)", call, re.MULTILINE) is None), title


def test_each_setting_says_what_it_is_for() -> None:
    assert [variable for variable, *_, words in reference.server_settings() if not words] == []


def test_each_page_is_in_the_site() -> None:
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^([\w/-]+)$", index, re.MULTILINE))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES[1:]}
    assert pages - {"index"} <= listed
