"""Mutation testing: changes one thing in a module at a time, and lists the changes no test notices.

    python tools/mutate.py shared/craft_shared/codec.py -- tests/shared/test_codec.py
    python tools/mutate.py MODULE -- QUICK TESTS -- SLOW TESTS

Slow tests meet only what the quick ones let live, and so on, for as many groups as there are.

It knows Python's syntax tree, and how to run pytest on a changed module without writing it down:
each mutant lives in a forked process of its own, which replaces the module's code where it is
imported.
It does not know what a module means: whether a survivor matters is for people to say
(docs/maintaining/testing.md).
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.machinery
import importlib.metadata
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Loaded before the forks, for speed. Nothing of the project: it is imported with the change.
HEAVY = ("alembic", "httpx", "hypothesis", "numpy", "pydantic", "pytest", "safetensors.numpy")
HEAVY += ("sqlalchemy", "joserfc", "structlog", "fastapi", "open_clip", "psycopg", "uvicorn")

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
JOINS = {"and_": "or_", "or_": "and_"}  # SQLAlchemy's


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, str, ast.Module]]:
    """Every change: its line, what stood there, what stands there now, and the whole module."""
    for index, node in enumerate(ast.walk(tree)):
        for kind in range(_kinds(node)):
            changed = copy.deepcopy(tree)
            twin = next(each for number, each in enumerate(ast.walk(changed)) if number == index)
            before = ast.unparse(twin)
            _change(twin, kind)
            yield (
                getattr(node, "lineno", 0),
                before,
                ast.unparse(twin) if not isinstance(twin, ast.Pass) else "pass",
                ast.fix_missing_locations(changed),
            )


def _kinds(node: ast.AST) -> int:
    match node:
        case ast.Compare(ops=ops):
            return sum(type(op) in SWAPS for op in ops)
        case ast.BinOp(op=op, left=left):
            return int(type(op) in SWAPS and not isinstance(left, ast.JoinedStr))
        case ast.BoolOp() | ast.IfExp() | ast.If():
            return 1
        case ast.UnaryOp(op=ast.Not()):
            return 1
        case ast.Constant(value=bool() | int()):
            return 1
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            return 1
        case ast.Call(func=ast.Attribute(attr=name)) if name in JOINS:
            return 1
        case ast.Call(func=ast.Attribute(attr="where"), args=conditions):
            return len(conditions)
        case ast.Expr(value=ast.Call()) | ast.Raise():
            return 1
    return 0


def _change(node: Any, kind: int) -> None:
    match node:
        case ast.Compare():
            at = [i for i, op in enumerate(node.ops) if type(op) in SWAPS][kind]
            node.ops[at] = SWAPS[type(node.ops[at])]()
        case ast.BinOp() | ast.BoolOp():
            node.op = SWAPS[type(node.op)]()
        case ast.IfExp() | ast.If():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.UnaryOp():
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant():
            node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        case ast.Call(func=ast.Name()):
            node.func.id = NAMES[node.func.id]
        case ast.Call(func=ast.Attribute(attr="where")):
            del node.args[kind]
        case ast.Call():
            node.func.attr = JOINS[node.func.attr]
        case ast.Expr():
            node.value = ast.Constant(None)
        case ast.Raise():
            node.exc, node.cause = ast.parse("AssertionError()", mode="eval").body, None


def survives(module: Path, tree: ast.Module, tests: list[str], seconds: float) -> bool:
    """Whether all tests pass, in so many seconds, although the module is this tree."""
    child = os.fork()
    if not child:
        _run(module, tree, tests)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run(module: Path, tree: ast.Module, tests: list[str]) -> None:
    real = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, name: str) -> Any:
        if Path(self.path) == module:
            return compile(tree, str(module), "exec")
        return real(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign] # the change
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    status = 1
    with suppress(BaseException):
        hypothesis = importlib.import_module("hypothesis")
        found = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # whatever is the simplest
        hypothesis.settings.register_profile("mutants", phases=found, deadline=None, database=None)
        hypothesis.settings.load_profile("mutants")
        pytest = importlib.import_module("pytest")
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        status = int(pytest.main([*options, *tests]))
    os._exit(status)


def main() -> None:
    """Prints each survivor, and how many there were of how many."""
    arguments, *groups = _split(sys.argv[1:])
    usage = "mutate.py [options] MODULE -- TESTS [-- SLOW TESTS]..."
    parser = argparse.ArgumentParser(usage=usage, description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="after which it ends (60)")
    parser.add_argument("--lines", type=int, nargs="+", help="mutants of these lines alone")
    options = parser.parse_args(arguments)
    if not groups:
        parser.error("tell the tests, after --")
    for name in HEAVY:
        importlib.import_module(name)
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()
    module = options.module.resolve()
    tree = ast.parse(module.read_text())
    limits = []
    for tests in groups:
        start = time.monotonic()
        if not survives(module, tree, tests, 600):
            sys.exit(f"these tests fail without a change: {' '.join(tests)}")
        limits.append(10 + 3 * (time.monotonic() - start))
    count, left, end = 0, 0, time.monotonic() + options.minutes * 60
    every = [each for each in mutants(tree) if not options.lines or each[0] in options.lines]
    random.Random(1).shuffle(every)  # so that what the time allows is a fair sample
    for line, before, after, changed in every:
        if time.monotonic() > end:
            break
        count += 1
        if all(survives(module, changed, *each) for each in zip(groups, limits, strict=True)):
            left += 1
            print(f"{options.module}:{line}: {before[:160]!r} -> {after[:160]!r}", flush=True)
    print(f"{options.module}: {count} of {len(every)} mutants, {left} survived")


def _split(arguments: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            parts.append([])
        else:
            parts[-1].append(argument)
    return parts


if __name__ == "__main__":
    main()
