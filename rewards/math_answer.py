r"""The math verifier: is an answer the same number, formula, set or equation as the gold one?

Three outcomes. *correct* and *wrong* are about the answer; *unscorable* says that the gold cannot be graded against, or that the
grader failed, and must stay outside every mean and baseline. A text counts as read only if all of it was; where in doubt it is wrong.

Known to be called wrong although right: units converted (`35 cm` and `0.35 m`), identities that hold for whole numbers only
(`\cos n\pi` and `(-1)^n`), ratios not in the gold's terms (`6:8` and `3:4`), sets written in another form (`(-\infty, \infty)` and
`\mathbb{R}`), numbers with a decimal comma, and answers in free text that no box, `####` or "answer is" announces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from agentrl.records import Score
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.rewards.math_compare import Policy, check_gold, same
from agentrl.rewards.math_symbolic import TooLarge, Unparsed
from agentrl.rewards.math_text import MAX_CHARACTERS, compact, normalize
from agentrl.rewards.math_tree import Malformed, Node, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

Verdict = Literal["correct", "wrong", "unscorable"]

_DEFAULT = Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A verdict and what led to it."""

    verdict: Verdict
    reason: str = ""
    """Empty for a plain comparison."""
    answer: str | None = None
    """What was taken for the answer; None where there was none."""

    def score(self) -> Score:
        """1, 0 or unscorable."""
        if self.verdict == "unscorable":
            return Score.unscorable(self.reason)
        value = float(self.verdict == "correct")
        return Score(value=value, parts={"correct": value})


def grade(*, gold: str, answer: str, policy: Policy = _DEFAULT) -> Grade:
    r"""Grade a text against a gold answer; both may hold a box, `$...$`, `####` or nothing but a formula.

    Example: `grade(gold="$\\frac{1}{2}$", answer="so it is \\boxed{0.5}").verdict == "correct"`.
    """
    expected = normalize(answer_text(gold) or "")
    if not expected:
        return Grade(verdict="unscorable", reason=gold_fault(gold))
    said = answer_text(answer)
    if said is None:
        return Grade(verdict="wrong", reason="no answer in the text")
    if len(said) > MAX_CHARACTERS:
        return Grade(verdict="wrong", reason=f"the answer is longer than {MAX_CHARACTERS} characters", answer=said)
    given = normalize(said)
    if compact(given) == compact(expected):
        return Grade(verdict="correct", answer=said)
    tree = _gold(expected)
    if isinstance(tree, str):
        return Grade(verdict="unscorable", reason=tree, answer=said)
    try:
        verdict: Verdict = "correct" if same(tree, parse(given), policy) else "wrong"
        return Grade(verdict=verdict, answer=said)
    except (Malformed, Unparsed) as error:
        return Grade(verdict="wrong", reason=f"the answer does not parse: {error}", answer=said)
    except TooLarge as error:
        return Grade(verdict="wrong", reason=f"the answer is too large to evaluate: {error}", answer=said)
    except Exception as error:  # sympy's simplifications may raise anything
        return Grade(verdict="unscorable", reason=f"the comparison failed: {type(error).__name__}: {error}", answer=said)


def gold_fault(gold: str) -> str:
    """Why only the very same text could be right for this gold; empty where answers can be compared with it. To check a data set."""
    tree = _gold(normalize(answer_text(gold) or ""))
    return tree if isinstance(tree, str) else ""


@lru_cache(maxsize=1024)
def _gold(text: str) -> Node | str:
    """The gold's tree, or why it cannot be graded against."""
    if not text:
        return "the gold is empty"
    if len(text) > MAX_CHARACTERS:
        return f"the gold is longer than {MAX_CHARACTERS} characters"
    try:
        tree = parse(text)
        check_gold(tree)
    except (Malformed, Unparsed) as error:
        return f"the gold does not parse: {error}"
    except TooLarge as error:
        return f"the gold is too large to evaluate: {error}"
    return tree


def math_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for a correct completion, 0 for a wrong one, None where it cannot be graded (TRL's signature; `answer` is the gold column)."""
    grades = [grade(gold=str(gold), answer=completion_text(completion)) for gold, completion in zip(answer, completions, strict=True)]
    return [result.score().value for result in grades]
