"""The graders of final answers by name, each with what it says of a gold: for environments, audits and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.rewards import exact, gsm8k, multiple_choice, numeric_units
from agentrl.rewards.extract import answer_text
from agentrl.rewards.grader_pool import Pair, shared_pool
from agentrl.rewards.grades import Grade
from agentrl.rewards.math_compare import STRICT, Policy
from agentrl.rewards.multiple_choice import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Grader:
    """A grader of final answers."""

    name: str
    grade: Callable[..., Grade]
    """`grade(gold=, answer=, options=)`; options are what there is to choose from, None for all but multiple choice."""
    text_fault: Callable[[str, Options | None], str]
    """Why a gold cannot be graded against, as far as its text alone says; empty where nothing is wrong."""
    solution: Callable[[str], str]
    """A completion that gives a gold as its answer."""
    asks: str
    """What to tell a model about the form of its answer."""

    def gold_fault(self, gold: Any, options: Options | None = None) -> str:
        """Why a gold cannot be graded against; empty where it can, and where it grades as correct against itself."""
        if gold is None or not str(gold).strip():
            return "the gold is empty"
        if fault := self.text_fault(str(gold), options):
            return fault
        itself = self.grade(gold=str(gold), answer=self.solution(str(gold)), options=options)
        return (
            "" if itself.verdict == "correct" else f"graded against itself, the gold is {itself.verdict}: {itself.reason or 'it differs'}"
        )


def grader(name: str, policy: Policy = STRICT) -> Grader:
    """The grader of a name. Raises `ValueError` naming those that there are.

    Args:
        name: a key of `GRADERS`.
        policy: what the data set allows beyond equality, for `math` and `gsm8k`.
    """
    if name not in GRADERS:
        raise ValueError(f"no grader is named {name!r}; there are {', '.join(GRADERS)}")
    return GRADERS[name](policy)


def _unmarked(gold: str) -> str:
    """Why the answer in a gold that is a whole solution cannot be told from the rest."""
    marked = any(mark in gold for mark in ("\\boxed", "\\fbox", gsm8k.MARK))
    return "" if marked or "\n" not in gold.strip() else "a gold of several lines needs its answer in a box, or after ####"


def _boxed(gold: str) -> str:
    return f"\\boxed{{{answer_text(gold) or gold}}}"


def _math(policy: Policy) -> Grader:
    return Grader(
        name="math",
        grade=lambda *, gold, answer, options=None: shared_pool().grade(Pair(gold=gold, answer=answer, policy=policy)),
        text_fault=lambda gold, options: _unmarked(gold) or shared_pool().gold_fault(gold),
        solution=_boxed,
        asks="Put the final answer into \\boxed{...}.",
    )


def _gsm8k(policy: Policy) -> Grader:
    return Grader(
        name="gsm8k",
        grade=lambda *, gold, answer, options=None: gsm8k.grade(gold=gold, answer=answer, policy=policy),
        text_fault=lambda gold, options: gsm8k.gold_fault(gold),
        solution=lambda gold: f"#### {gsm8k.gold_number(gold)}",
        asks="Write the final number in a last line of its own, after ####.",
    )


def _multiple_choice(policy: Policy) -> Grader:
    return Grader(
        name="multiple_choice",
        grade=lambda *, gold, answer, options=None: multiple_choice.grade(gold=gold, answer=answer, options=options),
        text_fault=multiple_choice.gold_fault,
        solution=_boxed,
        asks="Put the letter of the right option into \\boxed{...}.",
    )


def _numeric_units(policy: Policy) -> Grader:
    return Grader(
        name="numeric_units",
        grade=lambda *, gold, answer, options=None: numeric_units.grade(gold=gold, answer=answer),
        text_fault=lambda gold, options: numeric_units.gold_fault(gold),
        solution=_boxed,
        asks="Put the final number and its unit into \\boxed{...}.",
    )


def _exact(policy: Policy) -> Grader:
    return Grader(
        name="exact",
        grade=lambda *, gold, answer, options=None: exact.grade(gold=gold, answer=answer),
        text_fault=lambda gold, options: exact.gold_fault(gold),
        solution=lambda gold: f"\\boxed{{{gold}}}",
        asks="Put the final answer into \\boxed{...}.",
    )


GRADERS: Mapping[str, Callable[[Policy], Grader]] = {
    "math": _math,
    "gsm8k": _gsm8k,
    "multiple_choice": _multiple_choice,
    "numeric_units": _numeric_units,
    "exact": _exact,
}
"""Name -> maker. A gold of `math` may be a whole solution with a box."""
