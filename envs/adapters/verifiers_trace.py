"""A conversation as the trace that the rewards of `verifiers` 0.4 read."""

from __future__ import annotations

import json
from typing import Any

from agentrl.environment import Episode
from agentrl.errors import EnvironmentFailure
from agentrl.llm import Message
from agentrl.rewards.extract import END_THINK, THINK


class NoRuntime:
    """Stands where a task's hooks expect a runtime to run commands in; whatever they ask of it is refused."""

    def __getattr__(self, name: str) -> Any:
        raise EnvironmentFailure(
            f"the task asks for runtime.{name}, and there is none turn by turn; let verifiers play it with mode=harness"
        )


def new_trace(task: Any) -> Any:
    """An empty trace of a task, as verifiers begins one."""
    import verifiers.v1 as vf
    from verifiers.v1.state import state_cls

    record = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    config = vf.AgentConfig(runtime=vf.SubprocessConfig(), model="policy")
    return vf.Trace(task=record, agent=vf.AgentInfo(config=config), state=state_cls(type(task))())


def fill(trace: Any, episode: Episode) -> None:
    """Put the conversation into the trace."""
    import verifiers.v1 as vf
    from verifiers.v1.dialects.chat import parse_message

    given = len(episode.prompt)
    for index, message in enumerate(episode.messages):
        sampled = index >= given and message["role"] == "assistant"
        parent = index - 1 if index else None
        trace.nodes.append(vf.MessageNode(parent=parent, message=parse_message(wire_form(message)), sampled=sampled))
        if sampled:
            cut = episode.ending == "truncated" and not any(later["role"] == "assistant" for later in episode.messages[index + 1 :])
            reason = "length" if cut else "tool_calls" if message.get("tool_calls") else "stop"
            trace.calls.append(vf.ModelCall(node=index, finish_reason=reason))
    trace.is_completed = True


def wire_form(message: Message) -> Message:
    """A message in OpenAI's form: reasoning apart from the content, arguments as JSON text."""
    made = dict(message)
    content = message.get("content")
    if message["role"] == "assistant" and isinstance(content, str) and not message.get("reasoning_content"):
        reasoning, end, spoken = content.rpartition(END_THINK)
        if not end and THINK in content:
            reasoning, spoken = content, ""
        made["content"], made["reasoning_content"] = spoken.lstrip("\n"), reasoning.replace(THINK, "", 1).strip() or None
    if message.get("tool_calls"):
        made["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return made


def _call(call: Message) -> Message:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
