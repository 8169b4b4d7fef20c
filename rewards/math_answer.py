r"""The math verifier: is an answer the same number, formula, set or equation as the gold one?

Three outcomes. *correct* and *wrong* are about the answer; *unscorable* says that the gold cannot be graded against, or that the
grader failed, and must stay outside every mean and baseline. A text counts as read only if all of it was; where in doubt it is wrong.

Known to be called wrong although right: units converted (`35 cm` and `0.35 m`), identities that hold for whole numbers only
(`\cos n\pi` and `(-1)^n`), ratios not in the gold's terms (`6:8` and `3:4`), sets written in another form (`(-\infty, \infty)` and
`\mathbb{R}`), a tuple for named values (`(2,3)` and `x=2, y=3`), a slash before a product (`1/2x`), numbers in words, decimal commas
without braces, functions of a number with another base (`\log` is of base 10), angles whose points are named from the other end,
constants of integration, and answers in free text that no box, `####` or "answer is" announces. Golds that are sets by conditions,
congruences, sums with dots, logic or transposes are unscorable but for the very same text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentrl.reward_call import required
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.rewards.grades import Grade
from agentrl.rewards.math_compare import STRICT, Policy, check_gold, is_plain, same
from agentrl.rewards.math_symbolic import TooLarge, Unparsed
from agentrl.rewards.math_text import MAX_CHARACTERS, compact, normalize
from agentrl.rewards.math_tree import Malformed, Node, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A comparison that takes computer algebra, and so may take for ever."""

    gold: str
    """Normalized."""
    answer: str
    """Normalized."""
    said: str
    """The answer as it was written."""
    policy: Policy


def grade(*, gold: str, answer: str, policy: Policy = STRICT) -> Grade:
    r"""Grade a text against a gold answer; both may hold a box, `$...$`, `####` or nothing but a formula.

    Some formulas keep computer algebra busy for ever: where a model wrote the answer, use `agentrl.rewards.grader_pool`.

    Example: `grade(gold="$\\frac{1}{2}$", answer="so it is \\boxed{0.5}").verdict == "correct"`.
    """
    found = read(gold=gold, answer=answer, policy=policy)
    return found if isinstance(found, Grade) else decide(found)


def read(*, gold: str, answer: str, policy: Policy = STRICT) -> Grade | Question:
    """Grade what can be graded without computer algebra, which most numbers and words can; takes milliseconds whatever the texts are."""
    expected = _expected(gold)
    if not expected or len(expected) > MAX_CHARACTERS:
        return Grade(verdict="unscorable", reason=_gold_text_fault(expected))
    said = answer_text(answer)
    if said is None:
        return Grade(verdict="wrong", reason="no answer in the text")
    if len(said) > MAX_CHARACTERS:
        return Grade(verdict="wrong", reason=f"the answer is longer than {MAX_CHARACTERS} characters", answer=said)
    given = normalize(said)
    if compact(given) == compact(expected):
        return Grade(verdict="correct", answer=said)
    question = Question(gold=expected, answer=given, said=said, policy=policy)
    return decide(question) if _is_plain(expected) and _is_plain(given) else question


def decide(question: Question, *, gold_is_read: Callable[[], None] = lambda: None) -> Grade:
    """Grade what `read` left open. May take for ever.

    Args:
        question: from `read`.
        gold_is_read: called once the gold has been found good: what goes wrong afterwards is the answer's doing.
    """
    said = question.said
    tree = _gold(question.gold)
    if isinstance(tree, str):
        return Grade(verdict="unscorable", reason=tree, answer=said)
    gold_is_read()
    try:
        return Grade.of(same(tree, parse(question.answer), question.policy), said)
    except (Malformed, Unparsed) as error:
        return Grade(verdict="wrong", reason=f"the answer does not parse: {error}", answer=said)
    except (TooLarge, MemoryError, RecursionError) as error:
        return Grade(verdict="wrong", reason=f"the answer is too large to evaluate: {str(error) or type(error).__name__}", answer=said)
    except Exception as error:  # sympy's simplifications may raise anything
        return Grade(verdict="unscorable", reason=f"the comparison failed: {type(error).__name__}: {error}", answer=said)


def gold_fault(gold: str) -> str:
    """Why only the very same text could be right for this gold; empty where answers can be compared with it. May take for ever."""
    found = read_gold(gold)
    return (found if isinstance(found, Grade) else decide(found)).reason


def read_gold(gold: str) -> Grade | Question:
    """Grade a gold against itself as `read` grades an answer, but not by its text: one that does not parse is unscorable here."""
    expected = _expected(gold)
    if fault := _gold_text_fault(expected):
        return Grade(verdict="unscorable", reason=fault)
    question = Question(gold=expected, answer=expected, said=expected, policy=STRICT)
    return decide(question) if _is_plain(expected) else question


def _expected(gold: str) -> str:
    text = answer_text(gold) or ""
    return normalize(text) if len(text) <= MAX_CHARACTERS else text


def _gold_text_fault(expected: str) -> str:
    if not expected:
        return "the gold is empty"
    return f"the gold is longer than {MAX_CHARACTERS} characters" if len(expected) > MAX_CHARACTERS else ""


def _is_plain(text: str) -> bool:
    try:
        return is_plain(parse(text))
    except Malformed:
        return True  # and refused


@lru_cache(maxsize=1024)
def _gold(text: str) -> Node | str:
    """The gold's tree, or why it cannot be graded against."""
    try:
        tree = parse(text)
        check_gold(tree)
    except (Malformed, Unparsed) as error:
        return f"the gold does not parse: {error}"
    except (TooLarge, MemoryError, RecursionError) as error:
        return f"the gold is too large to evaluate: {str(error) or type(error).__name__}"
    except Exception as error:  # sympy may raise anything
        return f"the gold cannot be evaluated: {type(error).__name__}: {error}"
    return tree


@required
def math_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for a correct completion, 0 for a wrong one, None where it cannot be graded (TRL's signature; `answer` is the gold column).

    Formulas are compared in the processes of `grader_pool.shared_pool()`.
    """
    from agentrl.rewards.grader_pool import Pair, shared_pool  # it imports this module

    pairs = [Pair(gold=str(gold), answer=completion_text(completion)) for gold, completion in zip(answer, completions, strict=True)]
    return [result.score().value for result in shared_pool().grade_many(pairs)]
