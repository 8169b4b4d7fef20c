"""A session with one MCP server, kept open on a thread and an event loop of its own.

An episode is a thread that blocks; `mcp` is asyncio, and its session needs a loop that runs between the calls, too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.envs.adapters.mcp_stdio import StdioTransport
from agentrl.errors import ConfigError, EnvironmentFailure

LATE_S = 2.0
"""How much later than its deadline the loop may say so itself, before its thread is given up."""
CLOSE_S = 5.0
"""Longest time to end a session in good order."""
MOST_PAGES = 100
"""Of the list of tools."""
MARK = "AGENTRL_ENV_"
"""Start of the variables by which descendants of a worker are found; a server gets them whatever else is kept from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """Where a server is: a command, or a URL."""

    command: tuple[str, ...] = ()
    url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of a command beside the harmless ones (PATH, HOME and their like)."""
    folder: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the HTTP requests to a URL."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.url or " ".join(self.command)


class ToolFailed(Exception):
    """The tool said that it failed; the model reads why."""


class McpSession:
    """An open session. Calls may overlap, and come from any thread.

    Args:
        server: to start, or to connect to.
        start_timeout_s: for the start and the list of tools.
    Raises: `EnvironmentFailure` where it does not start; `ConfigError` where `mcp` is not installed.
    """

    def __init__(self, server: McpServer, *, start_timeout_s: float) -> None:
        self.server = server
        self._start_timeout_s = start_timeout_s
        self._transport: StdioTransport | None = None
        self._client: Any = None
        self._over = ""
        self._opened: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._require_mcp()
        self._thread = threading.Thread(target=self._run, name="mcp", daemon=True)
        self._thread.start()
        try:
            self.tools: list[Any] = self._opened.result(start_timeout_s + CLOSE_S + LATE_S)
        except BaseException as error:
            self.close()
            if isinstance(error, Exception):
                raise self._failure(f"did not start: {_said(error, start_timeout_s)}") from error
            raise

    @property
    def alive(self) -> bool:
        """Whether calls can still be made."""
        return not self._over and self._thread.is_alive()

    def call(self, name: str, arguments: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Call a tool; gives mcp's `CallToolResult`.

        Raises `ToolFailed` where the server refuses the arguments, `EnvironmentFailure` where it is slow, gone or broken: the session
        is then over, because its next answer might belong to this call.
        """
        from mcp.shared.exceptions import MCPError
        from mcp_types import INVALID_PARAMS

        if not self.alive:
            raise self._failure(f"is gone: {self._over or 'its session has ended'}")
        future = self._submit(self._bounded(name, dict(arguments), timeout_s))
        try:
            return future.result(timeout_s + LATE_S)
        except MCPError as error:
            if error.error.code == INVALID_PARAMS:
                raise ToolFailed(error.error.message) from None
            fault: Exception = error
        except Exception as error:  # the boundary to the server: whatever its answer breaks
            fault = error
        future.cancel()
        why = f"tool {name}: {_said(fault, timeout_s)}"
        self._over = self._over or why
        self.close()
        raise self._failure(why) from fault

    def close(self) -> None:
        """End the session, and the server where it was started here. Safe to call again."""
        self._over = self._over or "it was closed"
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(CLOSE_S + LATE_S)
        if self._thread.is_alive() and self._transport is not None:
            self._transport.kill()

    def _submit(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has ended meanwhile
            work.close()
            raise self._failure(f"is gone: {self._over or 'its session has ended'}") from None

    async def _bounded(self, name: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        async with asyncio.timeout(timeout_s):
            return await self._client.call_tool(name, arguments)

    def _run(self) -> None:
        # the first: where the loop is given up with a task that does not end; the second: where the transport breaks
        with contextlib.suppress(RuntimeError, asyncio.CancelledError), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        stack = contextlib.AsyncExitStack()
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self._client = await stack.enter_async_context(self._make_client(stack))
                tools = await self._list_tools()
        except BaseException as error:
            await self._leave(stack)
            self._opened.set_exception(error)
            return
        self._opened.set_result(tools)
        try:
            await self._ending.wait()
        finally:
            await self._leave(stack)

    async def _leave(self, stack: contextlib.AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await stack.aclose()
        except BaseException as error:  # the session is over, however its peer took it
            self._over = self._over or f"{type(error).__name__}: {error}"
            if self._transport is not None:
                self._transport.kill()

    def _make_client(self, stack: contextlib.AsyncExitStack) -> Any:
        from mcp import Client
        from mcp.client.stdio import get_default_environment

        server = self.server
        if server.command:
            marks = {name: value for name, value in os.environ.items() if name.startswith(MARK)}
            environment = {**get_default_environment(), **server.environment, **marks}
            self._transport = StdioTransport(server.command, environment=environment, folder=server.folder)
            return Client(self._transport.streams())
        if not server.headers:
            return Client(server.url)
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        http = httpx2.AsyncClient(headers=dict(server.headers), timeout=None)  # every call has its own deadline
        stack.push_async_callback(http.aclose)
        return Client(streamable_http_client(server.url, http_client=http))

    async def _list_tools(self) -> list[Any]:
        tools: list[Any] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                return tools
        raise EnvironmentFailure(f"its list of tools has more than {MOST_PAGES} pages")

    def _require_mcp(self) -> None:
        try:
            from mcp import Client  # noqa: F401 - only to see that it is there, and of the right age
        except ImportError as error:
            self._loop.close()
            raise ConfigError(f'MCP servers need the package mcp, 2.0 or newer ({error}); pip install "agentrl[mcp]"') from error

    def _failure(self, what: str) -> EnvironmentFailure:
        fault = self._transport.fault if self._transport is not None else ""
        words = self._transport.last_words if self._transport is not None else ""
        more = f" ({fault})" if fault else ""
        return EnvironmentFailure(f"MCP server {self.server.name} {what}{more}{f'; its last lines: {words}' if words else ''}")


def _said(error: BaseException, timeout_s: float) -> str:
    """One line about what ended a call or a start."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError | concurrent.futures.TimeoutError):
        return f"it took longer than {timeout_s:g} s"
    if isinstance(error, EnvironmentFailure):
        return str(error)
    return f"{type(error).__name__}: {error}"
