"""A language model that is asked for verdicts, over any OpenAI-compatible URL.

A verdict is a JSON object that is the whole of the judge's reply and fits the schema that was asked for; nothing is searched for in prose.
Everything else is a `JudgeFailure`: a server that fails, times out or refuses, a reply that was cut off, is no JSON or does not fit.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.rewards.answer_cache import AnswerCache, default_folder
from agentrl.rewards.json_schema import parse_json
from agentrl.rewards.remote import Patience, Remote, RemoteFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")
U = TypeVar("U")

KEY_ENV = "AGENTRL_JUDGE_API_KEY"
DEFAULTS: dict[str, Any] = {"temperature": 0, "max_tokens": 2048}
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


class JudgeFailure(Exception):
    """There is no verdict; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """Where the judge is and how it is asked."""

    url: str
    """Base URL, such as http://127.0.0.1:8000/v1; requests go to its /chat/completions."""
    model: str
    """As the server calls it."""
    key_env: str = KEY_ENV
    """Environment variable with the API key."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the request, over temperature 0 and max_tokens 2048; None takes one out."""
    structured: bool = True
    """Ask the server to hold the reply to the schema (`response_format`); False for servers that do not know how."""
    timeout_s: float = 25.0
    """Of all tries of one verdict; keep it below `rollout.score_timeout_s`."""
    attempts: int = 4
    concurrency: int = 8
    """Requests in flight at once, in one process."""
    cache: str | None = "default"
    """Folder that keeps replies; `default` is ~/.cache/agentrl/judge, and None or an empty text keeps none."""


class JudgeClient:
    """Asks for verdicts and keeps them. Its methods block, and may be called from any thread.

    Args:
        options: which model, and where.
        remote: the server, in place of the one that `options` names.
    """

    def __init__(self, options: JudgeOptions, remote: Remote | None = None) -> None:
        if not options.model:
            raise ValueError(f"got model {options.model!r}; it is the name by which the server knows the judge")
        patience = Patience(timeout_s=options.timeout_s, attempts=options.attempts, concurrency=options.concurrency, most_bytes=1 << 20)
        self._options = options
        self._remote = remote or Remote(options.url, key_env=options.key_env, patience=patience)
        folder = default_folder("judge") if options.cache == "default" else Path(options.cache) if options.cache else None
        self._cache = None if folder is None else AnswerCache(folder)

    def close(self) -> None:
        """Close connections."""
        self._remote.close()

    def verdict(self, system: str, user: str, schema: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """Ask, or look it up.

        Args:
            system: who the judge is and what it does.
            user: what is judged.
            schema: of the object that is to be replied.
            read: checks the object and gives the verdict; raises `ValueError` for one that does not fit.
        Raises: `JudgeFailure` where there is no verdict.
        """
        body = self._body(system, user, schema)
        question = [self._remote.url, body]
        if self._cache is not None and (kept := self._cache.find(question)) is not None:
            return _read(kept, read)
        try:
            reply = _content(self._remote.post("/chat/completions", body))
        except RemoteFailure as failure:
            raise JudgeFailure(str(failure)) from None
        verdict = _read(reply, read)
        if self._cache is not None:  # only what could be read: the others may come out better another time
            self._cache.keep(question, reply)
        return verdict

    def together(self, ask: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """Call a function that asks for each item, side by side."""
        waiting = list(items)
        if len(waiting) < 2:
            return [ask(item) for item in waiting]
        with ThreadPoolExecutor(min(len(waiting), self._options.concurrency)) as threads:
            return list(threads.map(ask, waiting))

    def _body(self, system: str, user: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        given = {**DEFAULTS, **self._options.parameters}
        body: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        body |= {
            "model": self._options.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        }
        if self._options.structured:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
        return body


def _content(payload: Any) -> str:
    """The judge's text out of a chat completion that has ended by itself."""
    try:
        choice = payload["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise JudgeFailure(f"the answer is no chat completion: {payload!r:.200}") from None
    if reason not in ("stop", None):
        raise JudgeFailure(f"the judge's reply ended by {reason!r}, not by itself; it may need more max_tokens")
    if not isinstance(content, str) or not content.strip():
        raise JudgeFailure("the judge's reply has no text")
    return content


def _read(reply: str, read: Callable[[Mapping[str, Any]], T]) -> T:
    thought = _THOUGHT.match(reply)
    text = (reply[thought.end() :] if thought else reply).strip()
    fenced = _FENCE.fullmatch(text)
    document = parse_json(fenced[1] if fenced else text)
    if document is None or not isinstance(document[0], dict):
        raise JudgeFailure(f"the judge's reply is not one JSON object: {text!r:.200}")
    try:
        return read(document[0])
    except ValueError as error:
        raise JudgeFailure(f"the judge's verdict does not fit: {error}") from None
