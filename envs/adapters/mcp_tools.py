"""Tools of an MCP server: for any environment (`McpTools`), or around the rows of a data set (`mcp:` in a run file).

What a tool answers is shown as text: text as it is, structured content as JSON where there is no text, a notice in place of pictures and
sound. A server that is slow, dies or breaks its protocol makes the episode unscorable; what a tool itself calls an error, the model reads.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.environment import Environment, Episode, FunctionTool, Split
from agentrl.envs.adapters.mcp_session import LATE_S, McpServer, McpSession, ToolFailed
from agentrl.envs.dataset import dataset as rows_of
from agentrl.errors import ConfigError
from agentrl.records import Score, Task
from agentrl.single_turn import SingleTurn

MARGIN_S = 10.0
"""By how much the deadline of the runtime lies behind our own, at which only this episode is lost and not its worker."""

_shared: dict[str, McpSession] = {}
_sharing = threading.Lock()


class McpTools:
    """The tools of one server, for one episode: return `toolbox()` from the environment's own, and call `close` in its `close`.

    A command is started for this object alone, so that nothing leaks from one episode to the next; a URL names a server that all
    episodes share.

    Args:
        server: a command line, the list of its parts, or the URL of a server that speaks streamable HTTP.
        only: names of the tools to offer; all by default.
        shared: one process of the command for all episodes of a worker. Only for servers that keep nothing of their callers.
        timeout_s: of one call.
        start_timeout_s: of the start, list of tools included.
        environment: variables of the command, beside harmless ones.
        folder: where the command runs.
        headers: of the requests to a URL.

    Example: `examples/adapters/mcp_calculator.py`.
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        only: Sequence[str] | None = None,
        shared: bool = False,
        timeout_s: float = 30.0,
        start_timeout_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if importlib.util.find_spec("mcp") is None:
            raise ConfigError('MCP servers need the package mcp, 2.0 or newer; pip install "agentrl[mcp]"')
        self._server = _located(server, environment or {}, folder, headers or {})
        self._only = None if only is None else tuple(only)
        self._shares = shared and not self._server.url
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._session: McpSession | None = None

    def toolbox(self) -> list[FunctionTool]:
        """The server's tools, their schemas as it gives them; starts or connects at the first call.

        Raises `EnvironmentFailure` where that fails, `ConfigError` for a tool in `only` that the server does not have.
        """
        session = self._open()
        found = {tool.name: tool for tool in session.tools}
        unknown = [name for name in self._only or () if name not in found]
        if unknown:
            raise ConfigError(f"MCP server {self._server.name} has no tool {', '.join(unknown)}; it has: {', '.join(found) or 'none'}")
        return [self._tool(session, tool) for name, tool in found.items() if self._only is None or name in self._only]

    def close(self) -> None:
        """End the session, and with it the server that was started for it."""
        session, self._session = self._session, None
        if session is not None and not self._shares:
            session.close()

    def _open(self) -> McpSession:
        if self._session is not None:
            return self._session
        if not self._shares:
            self._session = McpSession(self._server, start_timeout_s=self._start_timeout_s)
            return self._session
        key = repr(self._server)
        with _sharing:
            known = _shared.get(key)
            if known is None or not known.alive:
                known = _shared[key] = McpSession(self._server, start_timeout_s=self._start_timeout_s)
            self._session = known
            return known

    def _tool(self, session: McpSession, tool: Any) -> FunctionTool:
        def call(**arguments: Any) -> str:
            result = session.call(tool.name, arguments, timeout_s=self._timeout_s)
            text = as_text(result)
            if result.is_error:
                raise ToolFailed(text or "the tool failed and did not say why")
            return text

        return FunctionTool(
            name=tool.name,
            description=tool.description or "",
            parameters=tool.input_schema,
            call=call,
            timeout_s=self._timeout_s + LATE_S + MARGIN_S,
        )


def _located(server: str | Sequence[str], environment: Mapping[str, str], folder: str | None, headers: Mapping[str, str]) -> McpServer:
    if isinstance(server, str) and server.partition("://")[0] in ("http", "https"):
        return McpServer(url=server, headers=headers)
    try:
        command = tuple(shlex.split(server)) if isinstance(server, str) else tuple(server)
    except ValueError as error:
        raise ConfigError(f"MCP server {server!r} is no command line: {error}") from None
    if not command:
        raise ConfigError("MCP server '' is neither a command line nor a URL (http://...)")
    return McpServer(command=command, environment=environment, folder=folder)


def as_text(result: Any) -> str:
    """What the model reads of a `CallToolResult`."""
    shown = [_shown(block) for block in result.content]
    if result.structured_content is not None and not any(block.type == "text" for block in result.content):
        shown.append(json.dumps(result.structured_content, ensure_ascii=False, default=str))
    return "\n".join(shown)


def _shown(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource_link":
        return f"[resource: {block.uri}]"
    resource = getattr(block, "resource", None)
    if resource is not None:
        text = getattr(resource, "text", None)
        return f"[a resource that is no text is not shown: {resource.uri}]" if text is None else str(text)
    return f"[{block.type} not shown: {getattr(block, 'mime_type', '?')}, {len(getattr(block, 'data', '')) * 3 // 4} bytes]"


class McpEpisodes(Environment):
    """Rows of a data set, to be solved with a server's tools.

    Args:
        rows: the data and its rewards.
        tools: of this episode.
    """

    def __init__(self, rows: SingleTurn, tools: McpTools) -> None:
        self._rows = rows
        self._tools = tools

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split."""
        return self._rows.tasks(split)

    def start(self, task: Task) -> list[dict[str, Any]]:
        """The row's prompt as messages, also where it is plain text: tools are shown by the chat template alone."""
        prompt = self._rows.start(task)
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

    def toolbox(self) -> list[FunctionTool]:
        """The server's tools."""
        return self._tools.toolbox()

    async def score(self, episode: Episode) -> Score:
        """What the reward functions make of the conversation."""
        return await self._rows.score(episode)

    def close(self) -> None:
        """End the server."""
        self._tools.close()


_rows: dict[tuple[str, ...], SingleTurn] = {}


def mcp_tools(
    server: str,
    *,
    dataset: str,
    rewards: str,
    eval_path: str | None = None,
    only: str | None = None,
    shared: bool = False,
    timeout_s: float = 30.0,
    start_timeout_s: float = 30.0,
    pass_env: str | None = None,
    token_env: str | None = None,
) -> McpEpisodes:
    """Solve the rows of a file with the tools of an MCP server: `mcp:COMMAND?dataset=...` or `mcp:http://...?dataset=...`.

    Args:
        server: a command line, started for each episode, or a URL, which all episodes share.
        dataset: JSON lines; each row has a `prompt` and the columns that the rewards read.
        rewards: comma-separated `file.py:function` or `package.module:function`; they are given completions as lists of messages.
        eval_path: rows to evaluate on; by default every 20th row of `dataset`.
        only: comma-separated names of the tools to offer.
        shared: one server for all episodes of a worker; must be true for a URL, where it cannot be otherwise.
        timeout_s: of one call.
        start_timeout_s: of the server's start.
        pass_env: comma-separated names of environment variables that the command gets.
        token_env: environment variable with the bearer token for a URL.
    """
    variables = {name: _variable(name) for name in (pass_env or "").split(",") if name}
    headers = {"Authorization": f"Bearer {_variable(token_env)}"} if token_env else {}
    names = None if only is None else [name.strip() for name in only.split(",")]
    tools = McpTools(
        server,
        only=names,
        shared=shared,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
        environment=variables,
        headers=headers,
    )
    if server.partition("://")[0] in ("http", "https") and not shared:
        raise ConfigError(
            f"mcp:{server}: all episodes share a server that is reached by URL; say shared=true if it keeps nothing of its callers, "
            "or give a command, which is started for each episode"
        )
    key = (dataset, rewards, eval_path or "")
    if key not in _rows:  # once a process, not once an episode
        _rows[key] = rows_of(dataset, rewards=rewards, eval_path=eval_path)
    return McpEpisodes(_rows[key], tools)


def _variable(name: str) -> str:
    try:
        return os.environ[name.strip()]
    except KeyError:
        raise ConfigError(f"there is no environment variable {name.strip()!r} to pass to the MCP server") from None
