"""Exact strings: the answer is the gold's text, up to what a data set declares not to matter."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.reward_call import required
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.rewards.grades import Grade

if TYPE_CHECKING:
    from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """What does not matter, beside the form of Unicode's composed characters and the white space at both ends."""

    spaces: bool = True
    """How much white space there is between words."""
    case: bool = False
    punctuation: bool = False
    """All punctuation, apostrophes and hyphens included."""
    articles: bool = False
    """The English words a, an and the."""

    def plain(self, text: str) -> str:
        """A text without what does not matter."""
        text = unicodedata.normalize("NFC", text)
        if self.case:
            text = unicodedata.normalize("NFC", text.casefold())
        if self.punctuation:
            text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
        if self.articles:
            text = _ARTICLE.sub(" ", text)
        return " ".join(text.split()) if self.spaces or self.articles else text.strip()


def grade(*, gold: str, answer: str, ignore: Spelling = Spelling(), whole: bool = False) -> Grade:
    """Grade by comparing strings.

    Args:
        gold: the text, all of it.
        answer: what a model wrote.
        ignore: what does not matter.
        whole: compare all of the answer, and not only what `agentrl.rewards.extract.answer_text` finds in it.
    """
    expected = ignore.plain(gold)
    if not expected:
        return Grade(verdict="unscorable", reason=gold_fault(gold, ignore=ignore))
    said = answer if whole else answer_text(answer)
    return Grade(verdict="wrong", reason="no answer in the text") if said is None else Grade.of(ignore.plain(said) == expected, said)


def gold_fault(gold: str, *, ignore: Spelling = Spelling()) -> str:
    """Why a gold cannot be graded against; empty where it can."""
    if not gold.strip():
        return "the gold is empty"
    return "" if ignore.plain(gold) else f"nothing is left of the gold {gold[:40]!r} without what does not matter"


@required
def exact_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for the gold's text, 0 for another, None where the gold is empty (TRL's signature; `answer` is the gold column)."""
    texts = map(completion_text, completions)
    return [grade(gold=str(gold), answer=text).score().value for gold, text in zip(answer, texts, strict=True)]
