r"""A reward for what a regular expression finds, bounded in time.

Run file: `agentrl.rewards.pattern:matches?pattern=%5Cd%2B` (percent-encoded: `\d+`). The engine is the `regex` package, whose syntax is
that of `re` and more, and which stops after a time: an expression may backtrack for ever, and what it reads was written by a model.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from agentrl.reward_call import required
from agentrl.rewards.extract import completion_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

How = Literal["search", "match", "fullmatch"]


def matches(
    pattern: str, *, how: How = "search", found: float = 1.0, missing: float = 0.0, ignore_case: bool = False, timeout_s: float = 1.0
) -> Callable[..., list[float | None]]:
    """Make a reward that is `found` where the expression matches and `missing` where it does not; None where that takes too long.

    Args:
        pattern: `^` and `$` match at line borders and `.` matches every character where it says so: `(?m)`, `(?s)`.
        how: anywhere, at the start, or all of the text.
        found: the reward of a match.
        missing: the reward without one.
        ignore_case: whether letters match in both cases.
        timeout_s: of one completion.
    Raises: `ValueError` for a pattern that does not compile.
    """
    import regex  # type: ignore[import-untyped]  # transformers depends on it, too

    if how not in ("search", "match", "fullmatch"):
        raise ValueError(f"got how {how!r}; it is search, match or fullmatch")
    if not isinstance(pattern, str):
        raise ValueError(f"got pattern {pattern!r}; it is a text: quote it where YAML would read a number")
    if not timeout_s > 0:
        raise ValueError(f"got timeout_s {timeout_s!r}; it is a time above 0")
    try:
        compiled = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except regex.error as error:
        raise ValueError(f"the pattern {pattern!r} does not compile: {error}") from None
    look = getattr(compiled, how)

    @required
    def pattern_match(*, completions: Sequence[Any], **_: Any) -> list[float | None]:
        """`found`, `missing`, or None past the time."""
        return [one(completion_text(completion)) for completion in completions]

    def one(text: str) -> float | None:
        try:
            return found if look(text, timeout=timeout_s, concurrent=True) else missing
        except (TimeoutError, MemoryError, RecursionError) as error:
            said = str(error) or type(error).__name__
            logging.getLogger(__name__).warning("the pattern %r was given up on %d characters: %s", pattern, len(text), said)
            return None

    return pattern_match
