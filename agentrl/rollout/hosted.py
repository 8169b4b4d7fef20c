"""One episode of an environment, inside its worker: requests in, answers out, and user code between them.

Async methods run under asyncio, for which most user code is written, on one loop an episode. What user code raises becomes a `Failed`
answer, or an observation where a tool raised it. torch and transformers are not imported.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl import registry
from agentrl.environment import Environment, Episode, SingleTurn, as_preference, as_score, finite, tool_methods
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Score
from agentrl.rollout.arguments import Unfit
from agentrl.rollout.messages import (
    Answer,
    CallTool,
    Compare,
    Compared,
    Failed,
    Grade,
    Graded,
    Observation,
    Open,
    Opened,
    Replied,
    Request,
    Response,
    Setup,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.records import Task
    from agentrl.rollout.tools import Tool

TRACEBACK_FRAMES = 6
MOST_REASON_CHARS = 2000
MOST_TRACEBACK_CHARS = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Makes the environment of each episode."""

    name: str
    """The environment's spec, for messages."""
    factory: Callable[[], Environment]
    template: SingleTurn | None
    """A `SingleTurn` holds nothing of an episode but `done`: copies share its rows instead of building them again."""
    tools: dict[str, Tool]
    max_output_chars: int

    @staticmethod
    def load(setup: Setup) -> Blueprint:
        """Import everything, and make one environment to see that it can be made. Raises `ConfigError`, and what user code raises."""
        for name in setup.imports:
            registry.import_module(name)
        factory = registry.load(setup.spec)
        environment = factory()
        blueprint = Blueprint(
            name=setup.spec,
            factory=factory,
            template=environment if type(environment) is SingleTurn else None,
            tools=_tools(environment),
            max_output_chars=setup.max_output_chars,
        )
        environment.close()
        return blueprint

    def make(self) -> Environment:
        """An environment for one episode."""
        return copy(self.template) if self.template is not None else self.factory()


def _tools(environment: Environment) -> dict[str, Tool]:
    if not tool_methods(environment):
        return {}
    from agentrl.rollout.tools import describe_tools  # pydantic and a docstring parser: for those who have tools

    return describe_tools(environment)


class HostedEpisode:
    """An environment and what its episode needs, on one thread."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._environment: Environment | None = None
        self._task: Task | None = None
        self._prompt: str | list[dict[str, Any]] = ""
        self._runner: asyncio.Runner | None = None

    def answer(self, request: Request) -> Response:
        """Do what is asked. Never raises."""
        match request:
            case Open():
                return self._guarded(request.call, "start", lambda: self._open(request))
            case CallTool():
                return self._guarded(request.call, f"tool {request.name}", lambda: self._call_tool(request))
            case Answer():
                return self._guarded(request.call, "reply", lambda: self._reply(request))
            case Grade():
                return self._guarded(request.call, "score", lambda: self._grade(request))
            case Compare():
                return self._guarded(request.call, "compare", lambda: self._compare(request))
        return Failed(call=0, reason=f"{type(request).__name__} is no request of an episode")

    def close(self) -> None:
        """Close the environment. What that raises is only printed: the episode is over."""
        try:
            if self._environment is not None:
                close: Callable[[], Any] = self._environment.close  # annotated as returning nothing, and yet it may be async
                self._resolved(close())
        except BaseException:
            traceback.print_exc()
        try:
            if self._runner is not None:
                self._runner.close()
        except BaseException:
            traceback.print_exc()

    def _guarded(self, call: int, boundary: str, action: Callable[[], Response]) -> Response:
        try:
            return action()
        except BaseException as error:  # SystemExit in user code, too, ends neither the thread nor the worker
            return Failed(call=call, reason=describe(self._blueprint.name, boundary, error), traceback=frames_of(error))

    def _open(self, request: Open) -> Opened:
        self._task = request.task
        self._environment = environment = self._blueprint.make()
        self._prompt = _checked_prompt(self._resolved(environment.start(request.task)), environment.system)
        _taken_reward(environment)  # no turn has been played that could earn it
        return Opened(
            call=request.call,
            prompt=self._prompt,
            tools=[tool.schema for tool in self._blueprint.tools.values()],
            max_turns=_checked_budget("max_turns", environment.max_turns),
            max_tokens=_checked_budget("max_tokens", environment.max_tokens),
            replies=type(environment).reply is not Environment.reply,
        )

    def _call_tool(self, request: CallTool) -> Observation:
        assert self._environment is not None
        failed = False
        try:
            arguments = self._blueprint.tools[request.name].validate(request.arguments)
            text = as_text(self._resolved(getattr(self._environment, request.name)(**arguments)))
        except EnvironmentFailure:
            raise
        except Unfit as unfit:
            text, failed = clean(f"error: {unfit}"), True
        except Exception as error:  # the boundary to a tool: what it raises, the model may read and mend
            text, failed = clean(f"error: {type(error).__name__}: {text_of(error)}"), True
        reward = _taken_reward(self._environment)
        return Observation(call=request.call, text=self._cut(text), done=bool(self._environment.done), error=failed, reward=reward)

    def _reply(self, request: Answer) -> Replied:
        assert self._environment is not None
        text = self._resolved(self._environment.reply(request.text))
        if text is not None and not isinstance(text, str):
            raise EnvironmentFailure(f"it returned {_shown(text)}; allowed: text for the user's next message, or None")
        reward = _taken_reward(self._environment)
        return Replied(call=request.call, text=None if text is None else clean(text), done=bool(self._environment.done), reward=reward)

    def _grade(self, request: Grade) -> Graded:
        assert self._environment is not None
        assert self._task is not None
        episode = Episode(
            task=self._task,
            prompt=self._prompt,
            messages=request.messages,
            completion_ids=request.completion_ids,
            ending=request.ending,
        )
        score = as_score("score", self._resolved(self._environment.score(episode)))
        value = None if score.value is None else float(score.value)
        parts = {clean(str(name)): float(part) for name, part in score.parts.items()}
        return Graded(call=request.call, score=Score(value=value, parts=parts, reason=clean(str(score.reason))))

    def _compare(self, request: Compare) -> Compared:
        assert self._environment is not None
        value = self._resolved(self._environment.compare(request.first, request.second))
        return Compared(call=request.call, value=as_preference("compare", value))

    def _resolved(self, value: Any) -> Any:
        """The value, or what it gives when awaited."""
        if not inspect.isawaitable(value):
            return value
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(_awaited(value))

    def _cut(self, text: str) -> str:
        limit = self._blueprint.max_output_chars
        if len(text) <= limit:
            return text
        return f"{text[:limit]}\n[cut here: {len(text) - limit} of {len(text)} characters are not shown]"


async def _awaited(value: Any) -> Any:
    return await value


def _taken_reward(environment: Environment) -> float:
    """What the environment set for the turn; the next one starts from 0."""
    reward = finite("turn_reward is", environment.turn_reward, "a finite number")
    if reward:  # an environment without rewards for turns may be frozen
        environment.turn_reward = 0.0
    return reward


def _checked_prompt(prompt: Any, system: str) -> str | list[dict[str, Any]]:
    """The prompt as it goes out; a system text goes before messages, and makes messages of a string."""
    if isinstance(prompt, str):
        if not system:
            return clean(prompt)
        prompt = [{"role": "user", "content": clean(prompt)}]
    if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
        raise EnvironmentFailure(f"it returned {_shown(prompt)}; allowed: a string, or a list of messages with role and content")
    head = [{"role": "system", "content": system}] if system and prompt[0]["role"] != "system" else []
    return [*head, *prompt]


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not all(isinstance(key, str) for key in item):
        return False
    content = item.get("content")  # a template would show a number or None to the model, or fail with an error of its own
    return isinstance(content, str | list) or (content is None and bool(item.get("tool_calls")))


def _checked_budget(name: str, budget: Any) -> int | None:
    if budget is None or (isinstance(budget, int) and budget >= 1):
        return budget
    raise EnvironmentFailure(f"{name} is {_shown(budget)}; allowed: an integer of at least 1, or None")


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


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # the same, in __repr__
        text = "?"
    return f"a {type(value).__name__}: {clean(text)[:80]}"
