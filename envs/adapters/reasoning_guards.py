"""What an answer must be before reasoning-gym's scorers see it.

Some of them run the answer as Python (`eval`, sympy's `parse_expr`), and the answer is a model's; others call answers right that are
not. The checks here come first. They are for release 0.1.25; a test looks for further scorers that run their answer.
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MOST_CHARS = 20_000
"""A longer answer scores 0; the longest golds have a few thousand characters."""
MOST_FORMULA_CHARS = 2_000
LARGEST_DEGREE = 100
TOLERANCE = 1e-4
FUNCTIONS = frozenset(
    ["Abs", "acos", "asin", "atan", "cos", "cosh", "cot", "csc", "exp", "ln", "log", "sec", "sin", "sinh", "sqrt", "tan", "tanh"]
)

_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Call, ast.Load)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.BitXor, ast.USub, ast.UAdd)


def is_literal(answer: str) -> bool:
    """Whether running an answer as Python computes nothing: it is a literal, or no Python at all."""
    try:
        ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    try:
        ast.literal_eval(answer.strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def is_formula(answer: str) -> bool:
    """Whether an answer is a formula of numbers, names and known functions, with powers that cannot explode."""
    if len(answer) > MOST_FORMULA_CHARS or "_" in answer:
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval")
        return all(map(_is_tame, ast.walk(tree))) and _degree(tree) <= LARGEST_DEGREE
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False


def _is_tame(node: ast.AST) -> bool:
    match node:
        case ast.Constant():
            return type(node.value) in (int, float)
        case ast.Call():
            return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        case ast.BinOp(op=ast.Pow() | ast.BitXor()):
            return not any(isinstance(inner, ast.Pow | ast.BitXor) for inner in ast.walk(node.right))
    return isinstance(node, _NODES + _OPERATORS)


def _degree(node: ast.AST) -> float:
    """A bound of the exponents, multiplied where powers are nested."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.BitXor):
        numbers = [inner.value for inner in ast.walk(node.right) if isinstance(inner, ast.Constant)]
        return math.prod(max(1.0, abs(float(number))) for number in numbers if isinstance(number, int | float)) * _degree(node.left)
    return max((_degree(child) for child in ast.iter_child_nodes(node)), default=1.0)


def _is_sum_of_numbers(answer: str) -> bool:
    return set(answer) <= set(string.digits + " +-*/().") and is_formula(answer)


def _uses_the_numbers(answer: str, entry: Mapping[str, Any]) -> bool:
    """Four numbers make 24: those of the question, each once."""
    return _is_sum_of_numbers(answer) and Counter(re.findall(r"\d+", answer)) == Counter(map(str, entry["metadata"]["numbers"]))


def _is_that_number(answer: str, entry: Mapping[str, Any]) -> bool:
    """Within the tolerance that the scorer has for an exact answer."""
    try:
        return abs(float(Fraction(answer.replace(",", ""))) - float(Fraction(entry["answer"].replace(",", "")))) <= TOLERANCE
    except (ValueError, ZeroDivisionError, OverflowError):
        return False


def _plain(check: Callable[[str], bool]) -> Callable[[str, Mapping[str, Any]], bool]:
    return lambda answer, entry: check(answer)


CHECKS: Mapping[str, Callable[[str, Mapping[str, Any]], bool]] = {
    # run the answer as Python
    "binary_matrix": _plain(is_literal),
    "n_queens": _plain(is_literal),
    "spiral_matrix": _plain(is_literal),
    "string_insertion": _plain(is_literal),
    "countdown": _plain(_is_sum_of_numbers),
    "intermediate_integration": _plain(is_formula),
    "polynomial_multiplication": _plain(is_formula),
    "simple_integration": _plain(is_formula),
    # call answers right that are not: the first digits of the number; any text at all; any four small numbers that make 24. (The integrals
    # above would take the question back as an unevaluated integral, and some of their golds hold one.)
    "coin_flip": _is_that_number,
    "game_of_life_halting": lambda answer, entry: answer.strip() == entry["answer"],
    "puzzle24": _uses_the_numbers,
}
"""Name of a data set -> whether an answer may be scored; one that may not scores 0."""


def may_be_scored(answer: str, entry: Mapping[str, Any]) -> bool:
    """Whether an answer may be handed to the scorer; the gold always may."""
    if answer == entry["answer"]:
        return True
    check = CHECKS.get(entry["metadata"].get("source_dataset", ""))
    return len(answer) <= MOST_CHARS and (check is None or check(answer, entry))
