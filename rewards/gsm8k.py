"""GSM8K: a number after `####`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.reward_call import required
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.rewards.grader_pool import Pair, shared_pool
from agentrl.rewards.grades import Grade
from agentrl.rewards.math_compare import STRICT, Policy
from agentrl.rewards.math_text import MAX_CHARACTERS, normalize, parse_number, split_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "####"


def grade(*, gold: str, answer: str, policy: Policy = STRICT) -> Grade:
    r"""Grade a text against the number after a gold's last `####`, or a gold that is a number and nothing else.

    The answer is what `agentrl.rewards.extract.answer_text` finds: a box, what follows `####` or "answer is", or the last line.

    Example: `grade(gold="48/2 = 24\n48+24 = 72\n#### 72", answer="So she sold \\boxed{72} clips.").verdict == "correct"`.
    """
    if reason := gold_fault(gold):
        return Grade(verdict="unscorable", reason=reason, answer=answer_text(answer))
    return shared_pool().grade(Pair(gold=gold_number(gold), answer=answer, policy=policy))


def gold_number(gold: str) -> str:
    """What stands after the last `####`; all of a gold without one."""
    return gold.rpartition(MARK)[2].strip()


def gold_fault(gold: str) -> str:
    """Why a gold cannot be graded against; empty where it can."""
    number = gold_number(gold)
    if not number:
        return "the gold is empty"
    if len(number) > MAX_CHARACTERS or parse_number(split_unit(normalize(number))[0]) is None:
        return f"the gold {number[:40]!r} is not a number"
    return ""


@required
def gsm8k_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for the right number, 0 for a wrong one, None where the gold is none (TRL's signature; `answer` is the gold column)."""
    texts = map(completion_text, completions)
    return [grade(gold=str(gold), answer=text).score().value for gold, text in zip(answer, texts, strict=True)]
