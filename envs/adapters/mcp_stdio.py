"""A child process that speaks MCP over its standard input and output: bounded in what it may write, and certain to end.

mcp's own stdio client reads lines of any length and gives a server seconds to go; a run starts one for each episode.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import IO, Any

MOST_LINE_BYTES = 16 * 2**20
"""A longer line on a server's standard output ends the server."""
MOST_JUNK_LINES = 10_000
"""More lines that are no JSON-RPC end the server; those up to it are passed over."""
SHOWN_JUNK_LINES = 5
MOST_LOG_BYTES = 64 * 2**10
"""Of a server's standard error that is passed on to this process's own; the rest is read and dropped, so that no disk fills."""
LAST_WORDS_BYTES = 500
CHUNK_BYTES = 64 * 2**10
GRACE_S = 0.5
"""From the end of its input to the kill of a server's process group."""
REAP_S = 2.0
"""Longest wait for a killed process; only one that hangs in the kernel, or gave its output to another session, takes longer."""


class StdioTransport:
    """How one server is started and talked to; `streams` is a transport of `mcp.Client`.

    Args:
        command: the program and its arguments.
        environment: its whole environment.
        folder: where it runs.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], folder: str | None = None) -> None:
        self.fault = ""
        """Why the connection was ended from this side; empty where it was not."""
        self.last_words = ""
        """The end of what the server wrote to its standard error."""
        self._command = list(command)
        self._environment = dict(environment)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End the server's process group at once; from any thread."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @contextlib.asynccontextmanager
    async def streams(self) -> AsyncGenerator[tuple[Any, Any]]:
        """Start the server; gives the stream of what it sends and the stream of what it is sent. It has ended afterwards.

        Raises `OSError` where the program cannot be started.
        """
        import anyio

        self._process = process = self._started()
        to_session, received = anyio.create_memory_object_stream[Any](0)
        sent, from_session = anyio.create_memory_object_stream[Any](0)
        try:
            async with _reading(process.stdout) as stdout, _reading(process.stderr) as stderr, asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._read(stdout, to_session)),
                    group.create_task(self._pass_on(stderr)),
                    group.create_task(self._write(process.stdin, from_session)),
                ]
                try:
                    yield received, sent
                finally:
                    await self._end(process)
                    for task in tasks:
                        task.cancel()
        finally:
            for stream in (to_session, received, sent, from_session):
                stream.close()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            bufsize=0,  # a buffer would have a lock, which a write that blocks keeps from the close
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self._environment,
            start_new_session=True,
        )

    async def _read(self, stdout: asyncio.StreamReader, to_session: Any) -> None:
        """Hand over each message; the session sees the end of the output, or of the patience with it, as a closed stream."""
        import anyio

        with to_session, contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._messages(stdout, to_session)
        while await stdout.read(CHUNK_BYTES):
            pass  # a server that is kept from writing is kept from ending, too

    async def _messages(self, stdout: asyncio.StreamReader, to_session: Any) -> None:
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        buffer, junk = bytearray(), 0
        while chunk := await stdout.read(CHUNK_BYTES):
            buffer += chunk
            *lines, buffer = buffer.split(b"\n") if b"\n" in chunk else (buffer,)
            for line in lines:
                try:
                    message = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                except ValueError:
                    junk += bool(line.strip())
                    self._pass_over(bytes(line), junk)
                else:
                    await to_session.send(message)
            if len(buffer) > MOST_LINE_BYTES:
                self.fault = f"it wrote a line of more than {MOST_LINE_BYTES} bytes"
            elif junk > MOST_JUNK_LINES:
                self.fault = f"it wrote more than {MOST_JUNK_LINES} lines that are no JSON-RPC messages"
            if self.fault:
                return self.kill()
            await asyncio.sleep(0)  # a flood must not keep the deadlines of this loop from being seen

    def _pass_over(self, line: bytes, junk: int) -> None:
        if line.strip() and junk <= SHOWN_JUNK_LINES:
            print(f"{self._command[0]}: no JSON-RPC on its standard output: {line[:200]!r}", file=sys.stderr)

    async def _pass_on(self, stderr: asyncio.StreamReader) -> None:
        """What the server logs goes to the log of this process, never to the model."""
        left, last = MOST_LOG_BYTES, b""
        while chunk := await stderr.read(CHUNK_BYTES):
            sys.stderr.write(chunk[:left].decode(errors="replace"))
            if 0 < left <= len(chunk):
                print(f"\n{self._command[0]}: it logs more than {MOST_LOG_BYTES} bytes; the rest is not shown", file=sys.stderr)
            left = max(0, left - len(chunk))
            last = (last + chunk)[-LAST_WORDS_BYTES:]
            self.last_words = last.decode(errors="replace").strip()

    async def _write(self, stdin: IO[bytes] | None, from_session: Any) -> None:
        assert stdin is not None
        async with from_session:
            with contextlib.suppress(OSError, ValueError):  # the other end, or this one, is closed
                async for message in from_session:
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await asyncio.to_thread(_write_all, stdin, text.encode() + b"\n")

    async def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Say that there is nothing more to come, wait a little, kill. Blocking is fine: this loop has nothing else to do."""
        with contextlib.suppress(OSError, ValueError):
            assert process.stdin is not None
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, GRACE_S)
        self.kill()  # also what it left in its group
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REAP_S)
        self._process = None  # its number may be given to another process now


def _write_all(stdin: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[stdin.write(left) :]


@contextlib.asynccontextmanager
async def _reading(pipe: IO[bytes] | None) -> AsyncGenerator[asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()
        await asyncio.sleep(0)  # the transport closes its pipe at the next turn of the loop
