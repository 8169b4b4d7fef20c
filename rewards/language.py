"""A reward for the language of a completion, by the detector py3langid (`pip install agentrl[language]`, 5 MB with its model).

Run file: `agentrl.rewards.language:language?wanted=de`, `agentrl.rewards.language:language?wanted=zh,yue`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentrl.rewards.extract import completion_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PIECE_CHARS = 400
"""Longer sentences are judged in pieces of this length."""
MOST_CHARS = 200_000
"""Of a longer text only so much is read; the detector takes about 0.1 s a million characters."""
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[(?:(?!\\\[).)*?\\\]|\\\((?:(?!\\\().)*?\\\)|https?://\S+|</?\w+>", re.DOTALL
)
"""A formula ends before the next one opens, or thousands that never close would each be read to the end of the text."""
_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f\u0964])\s*|\n+")


def language(wanted: str | Sequence[str] = "en", *, min_bytes: int = 20, min_confidence: float = 0.5) -> Callable[..., list[float | None]]:
    """Make a reward: the share of the text, by letters, whose language is wanted; None where the text is too short to tell.

    Sentences are judged one by one, so a text that changes languages gets a part of the reward. Code, formulas, links and tags are not
    read. A sentence counts only where it has enough letters, and the detector is sure enough of what it is.

    Args:
        wanted: codes of ISO 639, with commas in a run file; close relatives may have to be named too (`zh,yue,wuu`).
        min_bytes: UTF-8 bytes of the letters of a sentence that counts.
        min_confidence: least probability, of one language or of all the wanted ones together.
    Raises: `ValueError` for an unknown language; `ImportError` without the detector.
    """
    identifier = _identifier()
    codes = {code.strip() for code in (wanted.split(",") if isinstance(wanted, str) else wanted)}
    if not codes or not codes <= set(identifier.labels):
        unknown = ", ".join(sorted(codes - set(identifier.labels))) or "none"
        raise ValueError(f"got languages {unknown}; known: {', '.join(sorted(identifier.labels))}")

    def language_share(*, completions: Sequence[Any], **_: Any) -> list[float | None]:
        """From 0 to 1, or None."""
        return [share(completion_text(completion)) for completion in completions]

    def share(text: str) -> float | None:
        right = total = 0
        for piece in _pieces(text):
            weight = len("".join(filter(str.isalpha, piece)).encode("utf-8", "replace"))
            if weight < min_bytes:
                continue
            ranked = identifier.rank(piece)
            probability = sum(chance for code, chance in ranked if code in codes)
            other = max((chance for code, chance in ranked if code not in codes), default=0.0)
            if max(probability, other) >= min_confidence:
                total += weight
                right += weight * (probability > other)
        return right / total if total else None

    return language_share


def _pieces(text: str) -> Iterator[str]:
    prose = _NO_PROSE.sub(" ", text[:MOST_CHARS])
    for sentence in _SENTENCE.split(prose):
        yield from (sentence[start : start + PIECE_CHARS] for start in range(0, len(sentence), PIECE_CHARS))


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"the language reward needs py3langid ({error}): pip install 'agentrl[language]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
