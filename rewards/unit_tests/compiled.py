"""Tests as they are handed to the program that runs them: compiled out here, once for all answers that they grade.

That program is a fork of the very Python that runs here, so it takes code objects. Compiling runs nothing of the tests.
"""

from __future__ import annotations

import ast
import base64
import functools
import marshal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.rewards.unit_tests.plan import BadTests, called_name, free_names, modules_meant, num_cases, plan_of
from agentrl.rewards.unit_tests.tester import COUNT

if TYPE_CHECKING:
    from agentrl.rewards.unit_tests.plan import Step

MOST_KEPT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTests:
    """What can be known of tests before they are run."""

    steps: tuple[tuple[str, str, str], ...]
    """Kind, code, and the text for messages, of each."""
    before: str
    """Code."""
    num_cases: int
    names: frozenset[str]
    """That only the candidate can define."""
    modules: tuple[str, ...]
    """That the tests use without importing them."""


@functools.lru_cache(maxsize=MOST_KEPT)
def compile_tests(tests: str | tuple[str, ...], before: str) -> CompiledTests:
    """Compile tests, and the code that comes before them. Raises `BadTests` for those that do not compile or have no case."""
    steps = plan_of(tests)
    names = free_names(tests, before)
    text = tests if isinstance(tests, str) else "\n".join(tests)
    return CompiledTests(
        steps=tuple((step.kind, _code_of(step), step.text[:200]) for step in steps),
        before=_packed(ast.parse(before), "the code before the tests"),
        num_cases=num_cases(steps),
        names=frozenset(names),
        modules=tuple(sorted(modules_meant(text))),
    )


def _code_of(step: Step) -> str:
    if step.kind == "true":
        (node,) = step.nodes
        assert isinstance(node, ast.Expr)
        return _packed(ast.Expression(node.value), "the tests")
    counted = _CountAssertions().visit(ast.Module(list(step.nodes), []))
    return _packed(ast.fix_missing_locations(counted), "the tests")


def _packed(tree: ast.Module | ast.Expression, what: str) -> str:
    mode = "eval" if isinstance(tree, ast.Expression) else "exec"
    try:
        code: Any = compile(tree, "tests", mode, dont_inherit=True)
        return base64.b64encode(marshal.dumps(code)).decode()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"{what} does not compile: {type(error).__name__}: {error}") from None


class _CountAssertions(ast.NodeTransformer):
    """Puts a call before each assertion, so that tests which never come to one can be told from tests that pass."""

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return [_count_at(node), node]

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | list[ast.stmt]:
        """Helpers named `assert...` count as well."""
        name = called_name(node.value) if isinstance(node.value, ast.Call) else ""
        return [_count_at(node), node] if name.startswith("assert") else node


def _count_at(node: ast.stmt) -> ast.stmt:
    call = ast.Call(func=ast.Name(id=COUNT, ctx=ast.Load()), args=[], keywords=[])
    return ast.copy_location(ast.Expr(value=call), node)
