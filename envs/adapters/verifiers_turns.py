"""A task of `verifiers` 0.4 as an episode of our own turns: its prompt, its toolsets as tools, its rewards over the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.environment import Environment, Episode, FunctionTool, Split
from agentrl.envs.adapters.mcp_session import ToolFailed
from agentrl.envs.adapters.mcp_tools import as_text
from agentrl.envs.adapters.verifiers_load import Loaded, check_task, refuse
from agentrl.envs.adapters.verifiers_trace import NoRuntime, fill, new_trace
from agentrl.errors import EnvironmentFailure
from agentrl.records import Score, Task


class VerifiersTurns(Environment):
    """Episodes of a taskset, turn by turn. Toolsets run in this process, new ones for each episode, shared ones too.

    Args:
        loaded: the taskset.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._task: Any = None
        self._trace: Any = None
        self._tools: list[FunctionTool] = []
        self._toolsets: list[Any] = []

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split. Raises `ConfigError` where the first of them cannot be played here."""
        rows = self._loaded.rows[split]
        for row in rows[:1]:
            check_task(self._loaded.name, self._loaded.task_of(Task.from_row(self._loaded.name, row)))
        return rows

    async def start(self, task: Task) -> list[dict[str, Any]]:  # type: ignore[override] # it may be async
        """Set the task and its toolsets up; its prompt, after its system prompt."""
        from verifiers.v1.dialects.chat import message_to_wire

        self._task = self._loaded.task_of(task)
        check_task(self._loaded.name, self._task)
        self._trace = new_trace(self._task)
        await self._task.setup(self._trace, NoRuntime())
        taskset = self._loaded.taskset
        for toolset in [*type(self._task).toolsets(self._task.config), *taskset.toolsets(taskset.config)]:
            self._tools += await self._tools_of(toolset)
        data = self._task.data
        prompt = data.prompt
        said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message_to_wire(one)) for one in prompt]
        return [*([{"role": "system", "content": data.system_prompt}] if data.system_prompt else []), *said]

    def toolbox(self) -> list[FunctionTool]:
        """The tools of the toolsets, by the names that verifiers gives them."""
        return self._tools

    async def score(self, episode: Episode) -> Score:
        """Finalize and score as verifiers does: the sum of the weighted rewards, which are parts by their names, beside the metrics."""
        from verifiers.v1.errors import RolloutError

        trace = self._trace
        fill(trace, episode)
        try:
            await self._task.finalize(trace, NoRuntime())
            await self._task.score(trace, NoRuntime())
        except RolloutError as error:
            raise EnvironmentFailure(f"verifiers taskset {self._loaded.name}: {error}") from error
        return score_of(trace)

    async def close(self) -> None:  # type: ignore[override] # so may it
        """Free what the toolsets hold."""
        for toolset in reversed(self._toolsets):
            await toolset._exit_stack.aclose()

    async def _tools_of(self, toolset: Any) -> list[FunctionTool]:
        from mcp.server.mcpserver import MCPServer

        if toolset.config.url or getattr(toolset.config, "colocated", False):
            where = f"at {toolset.config.url}" if toolset.config.url else "inside the agent's runtime"
            refuse(self._loaded.name, [f"the toolset {type(toolset).__name__} {where}"])
        self._toolsets.append(toolset)
        self._share_state(toolset)
        await toolset.setup()
        await toolset.setup_task(self._task.data)
        server = MCPServer(toolset.server_name or type(toolset).__name__)
        toolset.register(server)
        head = f"{toolset.server_name}_" if toolset.server_name else ""
        return [_tool(server, head, tool) for tool in await server.list_tools()]

    def _share_state(self, toolset: Any) -> None:
        """Let a toolset work on the trace's own state, which it would else fetch from the rollout's process and send back."""

        async def pull() -> Any:
            return self._trace.state

        async def push(before: bytes) -> None:
            """Nothing is to be sent."""

        if not hasattr(toolset, "_pull_state") or not hasattr(toolset, "_push_state"):
            raise EnvironmentFailure(f"verifiers toolset {type(toolset).__name__}: this release shares its state in a way not known here")
        toolset._pull_state, toolset._push_state = pull, push


def _tool(server: Any, head: str, tool: Any) -> FunctionTool:
    async def call(**arguments: Any) -> str:
        result = await server.call_tool(tool.name, arguments)
        text = as_text(result)
        if result.is_error:
            raise ToolFailed(text)
        return text

    return FunctionTool(name=f"{head}{tool.name}", description=tool.description or "", parameters=tool.input_schema, call=call)


def score_of(trace: Any) -> Score:
    """The reward of a scored trace; unscorable where a reward is missing, or there is none at all."""
    missing = [name for name, reward in trace.rewards.items() if reward is None]
    if missing or not trace.rewards:
        return Score.unscorable(f"verifiers gave no value for {', '.join(missing)}" if missing else "the task has no rewards")
    parts = {f"metric/{name}": float(value) for name, value in trace.metrics.items() if value is not None}
    parts |= {name: float(reward.score) for name, reward in trace.rewards.items()}
    return Score(value=float(trace.reward), parts=parts)
