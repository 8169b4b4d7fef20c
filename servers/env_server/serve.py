"""The body of `agentrl serve-env`: an environment server at a terminal, from its start to its end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agentrl.config import RolloutConfig
from agentrl.rollout.pool import EnvPool, Timeouts
from agentrl.rollout.rows import RemoteRows
from agentrl.scratch import ScratchFolder
from agentrl.servers.env_server.app import EnvServer
from agentrl.servers.env_server.protocol import KEY_VARIABLE
from agentrl.servers.env_server.sessions import Limits, Sessions
from agentrl.servers.env_server.splits import Splits
from agentrl.servers.http_guard import checked_key
from agentrl.servers.http_server import listen, listening, run_until_signalled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agentrl.environment import Split
    from agentrl.servers.env_server.answers import Pool

MOST_OUTPUT_CHARS = 1 << 20
"""Of a tool's result; the limit of a run, at the client, is far below it."""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an environment server serves, where, and how much of it."""

    spec: str
    """The environment."""
    imports: tuple[str, ...] = ()
    """Modules or files that every worker imports first."""
    host: str = "127.0.0.1"
    port: int = 8100
    """0 takes a free one."""
    workers: int = field(default_factory=_cores)
    """Killable processes that environments run in."""
    tool_timeout_s: float = 25.0
    """Of a start, a tool call, a reply. Below a run's own default, so that the run hears of a call that hangs."""
    score_timeout_s: float = 25.0
    """Of a score or comparison, below a run's own default too."""
    limits: Limits = field(default_factory=Limits)
    most_body_mib: int = 32
    """Of one request."""
    logs: Path | None = None
    """Folder for what environments print; by default a temporary one."""


def serve(options: Options, *, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it, which raises `KeyboardInterrupt`. Raises `ConfigError` for a wrong environment or address.

    Args:
        options: what to serve.
        say: is given one line as soon as the server answers.
    """
    key = checked_key(options.host, KEY_VARIABLE, "read the tasks with their answers and run the environment's tools", os.environ)
    with listening(options.host, options.port) as (sock, url):
        run_until_signalled(partial(run, options, key, sock, lambda splits: say(ready_line(options, url, splits, with_key=bool(key)))))


def options_from_flags(
    *, workers: int | None, max_sessions: int, idle_timeout: float, imports: list[str] | None, max_body_mib: int, **flags: Any
) -> Options:
    """Options as the command line gives them.

    Args:
        workers: None for one a core.
        max_sessions: episodes at once.
        idle_timeout: in seconds.
        imports: modules or files.
        max_body_mib: of a request.
        flags: further fields of `Options`; timeouts in seconds.
    """
    limits = Limits(max_sessions=max_sessions, idle_s=idle_timeout)
    timeouts = {f"{name}_s": flags.pop(name) for name in ("tool_timeout", "score_timeout")}
    sizes: dict[str, Any] = {} if workers is None else {"workers": workers}
    return Options(imports=tuple(imports or ()), limits=limits, most_body_mib=max_body_mib, **timeouts, **sizes, **flags)


def ready_line(options: Options, url: str, splits: str, *, with_key: bool) -> str:
    """What is printed when the server answers: where it is, and what to write where the run starts."""
    key = f", with {KEY_VARIABLE} set to the key" if with_key else ""
    return f"{options.spec} ({splits}) is served at {url}; in a run: agentrl train --env {url}{key}"


async def run(options: Options, key: str, sock: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve on a listening socket until it is cancelled; then environments are closed and every process is ended.

    Args:
        options: what to serve.
        key: that clients must bring; empty for none.
        sock: stays open.
        on_ready: called with the splits in words as soon as the server answers.
    """
    config = RolloutConfig(env_workers=options.workers, max_tool_output_chars=MOST_OUTPUT_CHARS)
    with ScratchFolder("agentrl-env-") as scratch:
        logs = options.logs or scratch
        async with (
            EnvPool(options.spec, options.imports, config, timeouts=timeouts_of(options), logs=logs) as pool,
            Splits(partial(_load_rows, options, logs)).running() as splits,
        ):
            await run_over(pool, splits, options, key, sock, lambda: on_ready(splits.described()))


async def run_over(pool: Pool, splits: Splits, options: Options, key: str, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve what is there already, as `run` does."""
    async with trio.open_nursery() as nursery:
        sessions = Sessions(pool, options.limits, nursery)
        server = EnvServer(options.spec, sessions, splits, timeouts_of(options), key=key, most_bytes=options.most_body_mib << 20)
        await nursery.start(listen, server.app(), sock)
        on_ready()


def timeouts_of(options: Options) -> Timeouts:
    """The deadlines of the workers."""
    call_s, score_s = options.tool_timeout_s, options.score_timeout_s
    return Timeouts(call_s=call_s, score_s=score_s, grace_s=max(call_s, score_s))


def _load_rows(options: Options, logs: Path, split: Split) -> RemoteRows:
    return RemoteRows(options.spec, split, imports=options.imports, log=logs / f"tasks-{split}.log")
