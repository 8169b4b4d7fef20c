"""An agent program of any kind as an environment: it is given the URL of an OpenAI-compatible endpoint, and what it does is the episode."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.environment import SCRATCH, Environment, Episode
from agentrl.errors import EnvironmentFailure
from agentrl.llm import LLM, POLICY, BudgetSpent
from agentrl.records import Score, Task
from agentrl.servers.openai_endpoint import Endpoint, openai_endpoint

MOST_OUTPUT_BYTES = 1 << 20
SHOWN_CHARS = 1000
DRAIN_S = 1.0
"""Longest wait for the last of what a program printed, once it has ended."""
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
"""Environment variables that a program inherits."""


class AgentProgram(Environment):
    """Runs a program an episode, in a folder of its own, and scores what came of it.

    A subclass gives `tasks` and `score`, and `command` or an `agent` of its own. The program finds the endpoint in `OPENAI_BASE_URL` and
    `OPENAI_API_KEY`, and its task as JSON in `AGENTRL_TASK`. After it, `output` and `folder` hold what it wrote.

    A program that fails is unscorable, for nobody can tell whose fault it was; one that fails because the episode's budget was spent
    ends it as truncated, and is scored.
    """

    command: Sequence[str] = ()
    """What to run, such as `("python", "agent.py")`."""
    variables: Mapping[str, str] = {}
    """Further environment variables."""
    models: Mapping[str, str] = {}
    """Names of models that the program asks for, and the policies behind them."""
    default_policy: str | None = POLICY
    """The policy behind any other name; None refuses them."""
    output: str = ""
    """What the program printed."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The program's working folder, removed with the episode."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="program-", dir=os.environ.get(SCRATCH)))
        return self._folder

    async def episode(self, task: Task, llm: LLM) -> Any:
        """Serve the model while the program runs."""
        async with openai_endpoint(llm, models=self.models, default=self.default_policy) as endpoint:
            await self.agent(task, endpoint)
        if endpoint.spent:
            raise BudgetSpent(endpoint.spent)
        return None

    async def agent(self, task: Task, endpoint: Endpoint) -> None:
        """Play the episode against the endpoint; by default, run `command`."""
        inherited = {name: os.environ[name] for name in KEPT if name in os.environ}
        given = {"OPENAI_BASE_URL": endpoint.base_url, "OPENAI_API_KEY": endpoint.api_key, "AGENTRL_TASK": json.dumps(task.row)}
        if not self.command:
            raise EnvironmentFailure(f"{type(self).__name__} has no command to run and no agent(task, endpoint) of its own")
        async with _Output() as output:
            status = await self._run({**inherited, **self.variables, **given}, output)
        self.output = output.kept.decode("utf-8", "replace")
        if status and not endpoint.spent:
            why = f"; of its requests, refused: {endpoint.refused[-1]}" if endpoint.refused else ""
            raise EnvironmentFailure(f"{self.command[0]} ended with status {status}{why}; its last words: {self.output[-SHOWN_CHARS:]!r}")

    async def _run(self, variables: Mapping[str, str], output: _Output) -> int:
        """Run the command to its end; its status. What it leaves behind is killed."""
        process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.folder,
            env=dict(variables),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.pipe,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def score(self, episode: Episode) -> Score | float | Mapping[str, float] | Any:
        """Score what the program did; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} must define score(episode)")

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class _Output:
    """What a program prints, up to a cap; the rest is read and forgotten, so that the program does not stand still.

    A pipe of our own: asyncio takes a process for running as long as anybody holds its output open, and what it left behind may.
    """

    def __init__(self) -> None:
        self.kept = bytearray()
        self.pipe = -1
        """For the program to write to."""

    async def __aenter__(self) -> _Output:
        ours, self.pipe = os.pipe()
        stream = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(ours, "rb", buffering=0))
        self._reading = asyncio.create_task(self._read(stream))
        return self

    async def __aexit__(self, *error: object) -> None:
        os.close(self.pipe)
        await asyncio.wait([self._reading], timeout=DRAIN_S)
        self._reading.cancel()
        self._transport.close()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(1 << 16):
            self.kept += chunk[: max(0, MOST_OUTPUT_BYTES - len(self.kept))]
