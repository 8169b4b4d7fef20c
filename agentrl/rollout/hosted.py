"""One episode of an environment, inside its worker: requests in, answers out, and user code between them.

Async methods run under asyncio, for which most user code is written, on one loop an episode. What user code raises becomes a `Failed`
answer, or an observation where a tool raised it. torch and transformers are not imported.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl import registry
from agentrl.environment import Environment, Episode, FunctionTool, ToolError, as_preference, as_score, tool_methods
from agentrl.errors import EnvironmentFailure
from agentrl.llm import BudgetSpent
from agentrl.records import Score
from agentrl.rollout.arguments import Unfit
from agentrl.rollout.hosted_llm import HostedLLM
from agentrl.rollout.messages import (
    Answer,
    CallTool,
    Compare,
    Compared,
    Failed,
    Finished,
    Grade,
    Graded,
    Observation,
    Open,
    Opened,
    Play,
    Replied,
    Request,
    Response,
    Sampled,
    Setup,
)
from agentrl.rollout.user_values import (
    as_text,
    checked_budget,
    checked_prompt,
    clean,
    cut,
    describe,
    frames_of,
    plain_score,
    shown,
    taken_reward,
    text_of,
)
from agentrl.single_turn import SingleTurn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentrl.records import Task
    from agentrl.rollout.tools import Tool


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
    """An environment and what its episode needs, on one thread.

    Args:
        blueprint: makes the environment.
        send: sends unasked messages to the rollout process: what an environment that plays its own episode asks for.
    """

    def __init__(self, blueprint: Blueprint, send: Callable[[Response], None] = lambda message: None) -> None:
        self._blueprint = blueprint
        self._send = send
        self._environment: Environment | None = None
        self._task: Task | None = None
        self._prompt: str | list[dict[str, Any]] = ""
        self._runner: asyncio.Runner | None = None
        self._tools: dict[str, _Callable] = {}
        self._llm: HostedLLM | None = None
        self._cancelled = False

    @property
    def system(self) -> str:
        """The environment's system text, once it is open."""
        return self._environment.system if self._environment is not None else ""

    def sampled(self, message: Sampled) -> None:
        """Hand over a turn that the environment asked for; from another thread."""
        if self._llm is not None:
            self._llm.answered(message)

    def cancel(self) -> None:
        """Cancel the episode that the environment plays, if it does; from another thread."""
        self._cancelled = True
        if self._llm is not None:
            self._llm.cancel()

    def answer(self, request: Request) -> Response:
        """Do what is asked. Never raises."""
        match request:
            case Open():
                return self._guarded(request.call, "start", lambda: self._open(request))
            case CallTool():
                return self._guarded(request.call, f"tool {request.name}", lambda: self._call_tool(request))
            case Answer():
                return self._guarded(request.call, "reply", lambda: self._reply(request))
            case Play():
                return self._guarded(request.call, "episode", lambda: self._play(request))
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
        environment.prepare(request.task)
        if environment.plays:
            return Opened(
                call=request.call,
                prompt="",
                tools=[],
                max_turns=checked_budget("max_turns", environment.max_turns),
                max_tokens=checked_budget("max_tokens", environment.max_tokens),
                replies=False,
                plays=True,
            )
        self._prompt = checked_prompt(self._resolved(environment.start(request.task)), environment.system)
        taken_reward(environment)  # no turn has been played that could earn it
        self._tools = {name: _Callable(tool, getattr(environment, name)) for name, tool in self._blueprint.tools.items()}
        self._tools |= _toolbox(environment, self._tools)
        return Opened(
            call=request.call,
            prompt=self._prompt,
            tools=[held.tool.schema for held in self._tools.values()],
            timeouts={name: held.tool.timeout_s for name, held in self._tools.items() if held.tool.timeout_s is not None},
            output_chars={name: held.tool.max_output_chars for name, held in self._tools.items() if held.tool.max_output_chars is not None},
            max_turns=checked_budget("max_turns", environment.max_turns),
            max_tokens=checked_budget("max_tokens", environment.max_tokens),
            replies=environment.replies,
        )

    def _call_tool(self, request: CallTool) -> Observation:
        assert self._environment is not None
        failed, held = False, self._tools[request.name]
        try:
            arguments = held.tool.validate(request.arguments)
            text = as_text(self._resolved(held.call(**arguments)))
        except EnvironmentFailure:
            raise
        except Unfit as unfit:
            text, failed = clean(f"error: {unfit}"), True
        except ToolError as error:
            text, failed = clean(text_of(error)), True
        except Exception as error:  # the boundary to a tool: what it raises, the model may read and mend
            text, failed = clean(f"error: {type(error).__name__}: {text_of(error)}"), True
        reward = taken_reward(self._environment)
        text = cut(text, held.tool.max_output_chars or self._blueprint.max_output_chars)
        return Observation(call=request.call, text=text, done=bool(self._environment.done), error=failed, reward=reward)

    def _reply(self, request: Answer) -> Replied:
        assert self._environment is not None
        text = self._resolved(self._environment.reply(request.text))
        if text is not None and not isinstance(text, str):
            raise EnvironmentFailure(f"it returned {shown(text)}; allowed: text for the user's next message, or None")
        reward = taken_reward(self._environment)
        return Replied(call=request.call, text=None if text is None else clean(text), done=bool(self._environment.done), reward=reward)

    def _play(self, request: Play) -> Finished:
        assert self._environment is not None
        assert self._task is not None
        environment, task = self._environment, self._task
        self._llm = llm = HostedLLM(request.session, self._send)
        if self._cancelled:
            llm.cancel()
        value, spent = None, False
        try:
            value = self._resolved(llm.run(lambda model: environment.episode(task, model)))
        except BudgetSpent:
            spent = True
        except BaseExceptionGroup as group:  # of tasks that were played side by side
            if group.split(BudgetSpent)[1] is not None:
                raise
            spent = True
        rewards = llm.rewards
        if value is not None:
            return Finished(call=request.call, score=plain_score(as_score("episode", value, environment.part_weights)), rewards=rewards)
        if type(environment).score is not Environment.score:
            return Finished(call=request.call, score=None, spent=spent, rewards=rewards)
        what = "the episode ran out of its budget" if spent else "episode(task, llm) returned None"
        missing = Score.unscorable(f"{what}, and {type(environment).__name__} defines no score(episode)")
        return Finished(call=request.call, score=missing, spent=spent, rewards=rewards)

    def _grade(self, request: Grade) -> Graded:
        assert self._environment is not None
        assert self._task is not None
        episode = Episode(
            task=self._task,
            prompt=self._prompt if request.prompt is None else request.prompt,
            messages=request.messages,
            completion_ids=request.completion_ids,
            ending=request.ending,
        )
        score = as_score("score", self._resolved(self._environment.score(episode)), self._environment.part_weights)
        return Graded(call=request.call, score=plain_score(score))

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


async def _awaited(value: Any) -> Any:
    return await value


@dataclass(frozen=True, slots=True)
class _Callable:
    """A tool of this very episode."""

    tool: Tool
    call: Callable[..., Any]


def _toolbox(environment: Environment, known: Mapping[str, _Callable]) -> dict[str, _Callable]:
    """The tools that the environment has found at run time. Raises `EnvironmentFailure` where two have one name."""
    given = environment.toolbox()
    if not given:
        return {}
    from agentrl.rollout.tools import describe_function_tool, describe_tool

    found: dict[str, _Callable] = {}
    for one in given:
        tool = describe_function_tool(one) if isinstance(one, FunctionTool) else describe_tool(getattr(one, "__name__", "?"), one)
        if tool.name in known or tool.name in found:
            raise EnvironmentFailure(f"toolbox() gave a second tool {tool.name!r}; tools: {', '.join([*known, *found])}")
        found[tool.name] = _Callable(tool, one.call if isinstance(one, FunctionTool) else one)
    return found
