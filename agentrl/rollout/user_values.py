"""What code of users gives and raises, checked, and made fit to be sent to another process."""

from __future__ import annotations

import json
import os
import traceback
from typing import TYPE_CHECKING, Any

from agentrl.environment import finite
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Score

if TYPE_CHECKING:
    from agentrl.environment import Environment

TRACEBACK_FRAMES = 6
MOST_REASON_CHARS = 2000
MOST_TRACEBACK_CHARS = 16_000


def plain_score(score: Score) -> Score:
    """The score in plain numbers and text, as a message can carry it."""
    value = None if score.value is None else float(score.value)
    parts = {clean(str(name)): float(part) for name, part in score.parts.items()}
    details = {clean(str(name)): float(detail) for name, detail in score.details.items()}
    return Score(value=value, parts=parts, reason=clean(str(score.reason)), details=details)


def cut(text: str, limit: int) -> str:
    """A text up to a limit, with a word about what is left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut here: {len(text) - limit} of {len(text)} characters are not shown]"


def taken_reward(environment: Environment) -> float:
    """What the environment set for the turn; the next one starts from 0. Raises `EnvironmentFailure` for what is no number."""
    reward = finite("turn_reward is", environment.turn_reward, "a finite number")
    if reward:  # an environment without rewards for turns may be frozen
        environment.turn_reward = 0.0
    return reward


def checked_prompt(prompt: Any, system: str) -> str | list[dict[str, Any]]:
    """The prompt as it goes out; a system text goes before messages, and makes messages of a string.

    Raises `EnvironmentFailure` for what is no prompt.
    """
    if isinstance(prompt, str):
        if not system:
            return clean(prompt)
        prompt = [{"role": "user", "content": clean(prompt)}]
    if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
        raise EnvironmentFailure(f"it returned {shown(prompt)}; allowed: a string, or a list of messages with role and content")
    head = [{"role": "system", "content": system}] if system and prompt[0]["role"] != "system" else []
    return [*head, *prompt]


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not all(isinstance(key, str) for key in item):
        return False
    content = item.get("content")  # a template would show a number or None to the model, or fail with an error of its own
    return isinstance(content, str | list) or (content is None and bool(item.get("tool_calls")))


def checked_budget(name: str, budget: Any) -> int | None:
    """A budget, or None for no such. Raises `EnvironmentFailure` for what is none."""
    if budget is None or (isinstance(budget, int) and budget >= 1):
        return budget
    raise EnvironmentFailure(f"{name} is {shown(budget)}; allowed: an integer of at least 1, or None")


def as_text(result: Any) -> str:
    """What the model reads of a tool's result: text as it is, nothing for None, JSON for the rest."""
    if isinstance(result, str):
        return clean(result)
    return "" if result is None else clean(json.dumps(result, ensure_ascii=False, default=str))


def clean(text: str) -> str:
    """Text that can be sent: lone surrogates are replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def describe(name: str, boundary: str, error: BaseException) -> str:
    """One line about a failure: which environment, at which boundary, what and where."""
    said, where = text_of(error), ""
    if not isinstance(error, EnvironmentFailure | ConfigError):  # those were raised on purpose: their text says it all
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return clean(f"environment {name}, {boundary}: {said}"[:MOST_REASON_CHARS] + where)


def text_of(error: BaseException) -> str:
    """The error's message; empty where it cannot even be printed."""
    try:
        return str(error)
    except Exception:  # a user's error class may raise in __str__
        return ""


def frames_of(error: BaseException) -> str:
    """A short traceback; none for what was raised on purpose, whose text says it all."""
    if isinstance(error, EnvironmentFailure | ConfigError):
        return ""
    try:
        return clean("".join(traceback.format_exception(error, limit=-TRACEBACK_FRAMES)))[-MOST_TRACEBACK_CHARS:]
    except Exception:  # the same
        return ""


def shown(value: Any) -> str:
    """What was given instead of what is allowed, for messages."""
    try:
        text = repr(value)
    except Exception:  # the same, in __repr__
        text = "?"
    return f"a {type(value).__name__}: {clean(text)[:80]}"
