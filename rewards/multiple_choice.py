"""Multiple choice: the label of an option, or its text. Whoever names two options has not answered."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.reward_call import required
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.rewards.grades import Grade

Options = Sequence[str] | Mapping[str, str]
"""Texts, labelled A, B, C and so on; or texts by label."""

MAX_CHARACTERS = 2000
"""A longer answer is no choice."""

_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|textit)\s*\{([^{}]*)\}")
_LABELLED = re.compile(
    r"(?:the\s+)?(?:correct\s+)?(?:(?:option|choice|answer)\s*:?\s*)?[(\[]?\s*([A-Za-z]|\d{1,2})\s*[)\]]?(?:\s*[.:)\u2013-]\s*(.*))?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_LABEL = re.compile(r"(?<![\w'])[A-Z](?![\w'])")


def grade(*, gold: str, answer: str, options: Options | None = None) -> Grade:
    r"""Grade a choice: `B`, `(b)`, `B.`, `option B`, `B: Paris`, or `Paris`, in a box or after "answer is".

    Args:
        gold: a label or, where there are options, the text of one.
        answer: what a model wrote. A label beside the text of another option is wrong, and so is a text that two options share.
        options: what there is to choose from. Without them any letter is a label, and only labels are understood.
    """
    labels = _by_label(options)
    expected, reason = _gold(gold, labels)
    said = answer_text(answer)
    if expected is None:
        return Grade(verdict="unscorable", reason=reason, answer=said)
    if said is None:
        return Grade(verdict="wrong", reason="no answer in the text")
    chosen = _choice(said, labels) if len(said) <= MAX_CHARACTERS else None
    if chosen is None:
        return Grade(verdict="wrong", reason="the answer names no option, or several", answer=said)
    return Grade.of(chosen == expected, said)


def gold_fault(gold: str, options: Options | None = None) -> str:
    """Why a gold cannot be graded against; empty where it can."""
    return _gold(gold, _by_label(options))[1]


def _gold(gold: str, labels: Mapping[str, str]) -> tuple[str | None, str]:
    """The label, or None and why there is none."""
    if not gold.strip():
        return None, "the gold is empty"
    found = _choice(answer_text(gold) or "", labels)
    among = f"one of {', '.join(labels)}, or the text of one" if labels else "a letter"
    return found, "" if found is not None else f"the gold {gold[:40]!r} is no option; allowed: {among}"


def _by_label(options: Options | None) -> dict[str, str]:
    if options is None:
        return {}
    pairs = options.items() if isinstance(options, Mapping) else zip(string.ascii_uppercase, options, strict=False)
    return {str(label).strip().upper(): str(text) for label, text in pairs}


def _choice(said: str, labels: Mapping[str, str]) -> str | None:
    """The one label that a text names."""
    text = _COMMAND.sub(r"\1", said).replace("$", " ").replace("**", "").strip()
    whole = [label for label, option in labels.items() if _folded(option) == _folded(text)]
    match = _LABELLED.fullmatch(text.rstrip(" .,;!"))
    label, rest = (match[1].upper(), _folded(match[2] or "")) if match else ("", "")
    if match is None or (label not in labels if labels else not label.isalpha()):
        return whole[0] if len(whole) == 1 else None
    if any(other != label for other in whole):  # options that look like labels, such as `3` for the option labelled 1
        return None
    if not rest:
        return label
    agrees = rest == _folded(labels[label]) if labels else not _OTHER_LABEL.search(match[2])
    return label if agrees else None


def _folded(text: str) -> str:
    plain = _COMMAND.sub(r"\1", text).replace("$", " ")
    return " ".join(plain.casefold().split()).strip(" .,;:!?")


@required
def multiple_choice_reward(
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    answer: Sequence[str],
    options: Sequence[Options | None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1 for the right option, 0 for another or none, None where the gold is no option (TRL's signature; columns `answer`, `options`)."""
    texts = map(completion_text, completions)
    rows = zip(answer, texts, options or [None] * len(completions), strict=True)
    return [grade(gold=str(gold), answer=text, options=given).score().value for gold, text, given in rows]
