"""Environments without processes, and servers in the tests' own event loop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from rollout_fakes import thread_pool

from agentrl.errors import EnvironmentFailure
from agentrl.records import Score, Task
from agentrl.rollout import messages
from agentrl.rollout.pool import Timeouts
from agentrl.rollout.rows import plain_row
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.app import EnvServer
from agentrl.servers.env_server.serve import Options, run_over
from agentrl.servers.env_server.sessions import Limits, Sessions
from agentrl.servers.env_server.splits import Splits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SPEC = "fake"
SERVED = f"{Path(__file__).parent / 'served_env.py'}:Tools"


def task(**row: Any) -> Task:
    return Task.from_row(SPEC, {"prompt": "hi", **row})


class FakeEnvironment:
    """An episode that does what tools are told: `wait` some seconds, `fail`, or echo."""

    def __init__(self, pool: FakePool, prompt: str) -> None:
        self.opened = messages.Opened(call=1, prompt=prompt, tools=[], max_turns=None, max_tokens=None, replies=True)
        self.calls: list[Any] = []
        self._pool = pool

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> messages.Observation:
        self.calls.append((name, arguments))
        if name == "fail":
            raise EnvironmentFailure("the sandbox is down")
        if name == "wait":
            await trio.sleep(arguments["seconds"])
        return messages.Observation(call=1, text=f"{name} {len(self.calls)}", done=False)

    async def reply(self, text: str) -> messages.Replied:
        return messages.Replied(call=1, text=f"you said {text}", done=False, reward=0.5)

    async def score(self, episode: Any) -> Score:
        self.calls.append(episode)
        return Score(value=1.5, parts={"a": 1.5}, details={"seen": 2.0})

    async def compare(self, first: Any, second: Any) -> float | None:
        return 0.25

    async def play(self, answer: Any) -> messages.Finished:
        first = await answer(messages.Sample(session=7, number=0, prompt="one", policy="policy"))
        second = await answer(messages.Sample(session=7, number=1, prompt=first.text, policy="policy", train=False))
        assert (first.session, second.session) == (7, 7)
        return messages.Finished(call=1, score=Score(value=float(len(second.text))), rewards={1: 0.5})

    def close(self) -> None:
        self._pool.open_now -= 1
        self._pool.closed += 1


class FakePool:
    """Opens `FakeEnvironment`s."""

    def __init__(self) -> None:
        self.opened: list[FakeEnvironment] = []
        self.open_now = self.closed = 0

    async def open(self, task: Task) -> FakeEnvironment:
        await trio.sleep(task.row.get("seconds", 0))
        if task.row.get("broken"):
            raise EnvironmentFailure("start broke")
        self.open_now += 1
        self.opened.append(FakeEnvironment(self, str(task.row["prompt"])))
        return self.opened[-1]


class ListRows:
    """A split in this process."""

    compares = True

    def __init__(self, rows: Any, *, plays: bool = False) -> None:
        self._rows = rows
        self.plays = plays

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return plain_row("rows", self._rows, index)

    def close(self) -> None: ...


def fake_app(pool: FakePool, splits: Splits, nursery: trio.Nursery, *, key: str = "", most_bytes: int = 1 << 20, **limits: Any) -> Any:
    sessions = Sessions(pool, Limits(**limits), nursery)
    return EnvServer(SPEC, sessions, splits, Timeouts(), key=key, most_bytes=most_bytes).app()


@asynccontextmanager
async def served(spec: str, *, rows: Any = ({"prompt": "hi"},), key: str = "", plays: bool = False, **options: Any) -> AsyncIterator[str]:
    """A server over HTTP whose environments run in threads; gives its URL."""
    made = replace(Options(spec=spec), **options)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with (
            thread_pool(spec, max_tool_output_chars=1 << 20) as pool,
            Splits(lambda split: ListRows(rows, plays=plays)).running() as splits,
            trio.open_nursery() as nursery,
        ):
            ready = trio.Event()
            nursery.start_soon(run_over, pool, splits, made, key, sock, ready.set)
            await ready.wait()
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
            nursery.cancel_scope.cancel()


def decode(body: bytes) -> protocol.Said:
    return protocol.decode(body, protocol.Said)


@contextmanager
def server(*arguments: str, env: dict[str, str] | None = None, spec: str = SERVED) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`agentrl serve-env` as a user starts it; gives the process and its URL once it is ready."""
    command = [sys.executable, "-m", "agentrl", "serve-env", spec, "--port", "0", "--workers", "1", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            found = re.search(r"http://[\w.:]+", line)
            assert found is not None, "the server did not start"
            yield process, found[0]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(30)
