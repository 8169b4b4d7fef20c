"""Which statements of the tests are cases: one rule, read off the tests alone, so that their number is fixed before anything has run.

A list of texts has one case for each text that checks something; the others prepare. A single text has one case for each statement that
does:

- an `assert`, or a compound statement with one in it;
- a call of a function that the tests define (`check(candidate)`), or whose name starts with `assert`;
- an expression that compares or combines (`add(1, 2) == 3`), which must then be true; a bare call or name only where the text holds
  nothing but expressions, or is one of a list.

Functions of the tests named `test_...` that take no arguments and that nobody calls are called, and are cases. All else prepares the cases
that come after it. Only the standard library: sandboxes read plans as well.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set


STANDARD = {
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"), "collections"),
    **dict.fromkeys(("Any", "Dict", "List", "Optional", "Set", "Tuple", "Union"), "typing"),
    **{"deepcopy": "copy", "isclose": "math", "Decimal": "decimal", "Fraction": "fractions"},
}
"""Names that tests use as if they had imported them, and where they are from."""
NOT_STANDARD = ("np", "numpy", "pd", "pandas", "scipy", "torch", "pytest")


class BadTests(Exception):
    """Tests that cannot be read, or that check nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is run at once."""

    kind: Literal["prepare", "run", "true"]
    """`run` is a case that must not raise, `true` a case whose value must be true."""
    nodes: tuple[ast.stmt, ...]

    @property
    def text(self) -> str:
        """The step as Python, for messages."""
        return "; ".join(ast.unparse(node) for node in self.nodes)


def plan_of(tests: str | Sequence[str]) -> list[Step]:
    """The steps of tests, in their order. Raises `BadTests` for tests that do not parse or have no case."""
    texts = [tests] if isinstance(tests, str) else list(tests)
    trees = [_parse(text) for text in texts]
    defined = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if isinstance(tests, str):
        only_expressions = all(isinstance(node, ast.Expr) for node in trees[0].body)
        steps = [Step(_kind(node, defined, bare=only_expressions), (node,)) for node in trees[0].body]
    else:
        steps = [_whole(tree, defined) for tree in trees if tree.body]
    steps += [Step("run", (call,)) for call in _uncalled_tests(trees)]
    if not any(step.kind != "prepare" for step in steps):
        raise BadTests("the tests hold no case: nothing in them asserts, compares or calls a check")
    return steps


def num_cases(steps: Sequence[Step]) -> int:
    """How many verdicts are due."""
    return sum(step.kind != "prepare" for step in steps)


def free_names(tests: str | Sequence[str], before: str = "") -> set[str]:
    """Names that the tests read and nobody but the candidate can define: not the tests, not the text before them, not Python.

    A name of the standard library's modules whose attributes alone are read counts as that module. Raises `BadTests`.
    """
    text = tests if isinstance(tests, str) else "\n".join(tests)
    top = _symbols(text, "the tests")
    known = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()}
    known |= set(vars(builtins)) | _defined(before)
    read = {name for table in _tables(top) for name in _read_globals(table, top=table is top)}
    return read - known - modules_meant(text)


def standard_names(free: Set[str], tested: Set[str]) -> dict[str, str]:
    """The free names that measure and are not measured, each with its module: from the candidate they would be verdicts of its own.

    Args:
        free: as `free_names` gives them.
        tested: those that are known to be the candidate's.
    Raises: `BadTests` for a helper that the tests forgot to import or to define.
    """
    rest = free - tested
    measuring = {name for name in rest if name in STANDARD or name in NOT_STANDARD or name.startswith("assert")}
    if not measuring or (not tested and measuring == rest):  # then it is they that are tested
        return {}
    if unknown := sorted(measuring - STANDARD.keys()):
        raise BadTests(
            f"the tests use {', '.join(unknown)} without importing or defining it, and the candidate may not define what judges it"
        )
    return {name: STANDARD[name] for name in sorted(measuring)}


def modules_meant(text: str) -> set[str]:
    """Names of modules of the standard library of which the text reads attributes and nothing else."""
    tree = ast.parse(text)
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in sys.stdlib_module_names]
    return {node.id for node in names} - {node.id for node in names if id(node) not in bases}


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"the tests do not parse: {type(error).__name__}: {error}") from None


def _whole(tree: ast.Module, defined: set[str]) -> Step:
    """One text of a list."""
    if len(tree.body) == 1:
        return Step(_kind(tree.body[0], defined, bare=True), tuple(tree.body))
    checks = any(_kind(node, defined, bare=False) != "prepare" for node in tree.body)
    return Step("run" if checks else "prepare", tuple(tree.body))


def _kind(node: ast.stmt, defined: set[str], *, bare: bool) -> Literal["prepare", "run", "true"]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return "prepare"
    if isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Constant):  # a docstring
            return "prepare"
        if isinstance(node.value, ast.Call):
            name = called_name(node.value)
            if name in defined or name.startswith("assert"):
                return "run"
            return "true" if bare else "prepare"
        return "true" if bare or isinstance(node.value, ast.Compare | ast.BoolOp | ast.UnaryOp) else "prepare"
    return "run" if any(isinstance(inner, ast.Assert) for inner in ast.walk(node)) else "prepare"


def called_name(call: ast.Call) -> str:
    """The name, or the attribute, that is called; empty where it has none."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _uncalled_tests(trees: Sequence[ast.Module]) -> Iterator[ast.stmt]:
    called = {called_name(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name not in called and not _parameters(node):
                yield ast.parse(f"{node.name}()").body[0]


def _parameters(node: ast.FunctionDef) -> int:
    given = node.args
    return len(given.args) + len(given.posonlyargs) + len(given.kwonlyargs) - len(given.defaults)


def _symbols(text: str, what: str) -> symtable.SymbolTable:
    try:
        return symtable.symtable(text, what, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"{what} does not compile: {type(error).__name__}: {error}") from None


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _read_globals(table: symtable.SymbolTable, *, top: bool) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()


def _defined(text: str) -> set[str]:
    if not text:
        return set()
    top = _symbols(text, "the code before the tests")
    return {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()}
