"""A vLLM server as a child that leaves nothing behind.

vLLM is a tree of processes (the API server, an engine core for each data-parallel rank, a worker for each device) that survive each other
in many ways of dying. So they run below a guardian, which ends them all as soon as this process is gone, however it went.

    python -m agentrl.servers.vllm_server --options '{"model": "/models/qwen", "port": 8000}' --die-with-parent PID
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl import lifeline
from agentrl.errors import ConfigError
from agentrl.rollout.guardian import MARK, SIGNALLED, guarded, kill_marked
from agentrl.scratch import ScratchFolder
from agentrl.servers.vllm_options import ServerOptions, command, environment, from_json, resolve
from agentrl.servers.vllm_plugin.launch import STOP_FD
from agentrl.servers.vllm_python import find_python

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ServerOptions", "VllmServer", "main", "prepare"]

FAILED, WRONG_CONFIG, INTERRUPTED = 1, 2, 130
GRACE_S = 10.0
"""For vLLM to end by itself, so that it unlinks its shared memory; it takes two to four seconds."""
REAP_S = 10.0
"""Killed processes end at once, unless the kernel hangs in one; the guardian gives up before this."""


class VllmServer:
    """A running vLLM. A context manager; leaving it ends the whole tree.

    Args:
        words: the command line.
        variables: the environment.
    """

    def __init__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self._scratch = ScratchFolder("agentrl-vllm-")  # a vLLM that is killed leaves sockets behind
        # What torch compiles is worth keeping, and stays where it always is.
        compiled = {"TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"))}
        asked, self._ask = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*guarded(asked), *words],
                stdin=subprocess.PIPE,
                stdout=sys.stderr,
                pass_fds=[asked],
                env={**compiled, **variables, MARK: self._mark, STOP_FD: str(asked), "TMPDIR": str(self._scratch.path)},
                start_new_session=True,
            )
        except BaseException:
            os.close(self._ask)
            self._scratch.close()
            raise
        finally:
            os.close(asked)

    def __enter__(self) -> VllmServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The status that vLLM ended with, as shells give it; None where it still runs after that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout_s)
        return None

    def end(self) -> None:
        """End every process of the tree, the polite way first; may be called again."""
        assert self.process.stdin is not None
        try:
            if self._ask >= 0:
                os.close(self._ask)
                self._ask = -1
                self.wait(GRACE_S)
        finally:
            self.process.stdin.close()
            if self.wait(REAP_S) is None:
                self.process.kill()
            if self.process.wait() < 0:  # the guardian itself was killed, and has left the tree behind
                kill_marked(self._mark)
            self._scratch.close()


def prepare(options: ServerOptions, environ: Mapping[str, str]) -> tuple[ServerOptions, list[str], dict[str, str]]:
    """Resolved options, command line and environment of a server; raises `ConfigError` for what would not start."""
    python = find_python(options.python, own=sys.executable, folder=Path.cwd())
    options = resolve(options, python, environ)
    check_port(options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    variables = environment(options, environ, cores=cores, same_python=python.path == sys.executable)
    return options, command(options, python.path), variables


def check_port(options: ServerOptions) -> None:
    """Refuse an address that cannot be listened on, before minutes are spent on loading a model."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host.strip("[]"), options.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {options.host} port {options.port}: {error.strerror or error}; "
                "end what uses it, or give another --port or --host"
            ) from None


def ended(status: int) -> str:
    """One line about a vLLM that ended by itself."""
    number = -status if status < 0 else status - SIGNALLED
    how = f"was killed by {signal.Signals(number).name}" if number in set(signal.Signals) else f"ended with status {status}"
    return f"vLLM {how}; the reason is in its last lines above"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one server until it ends or this process is told to end; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agentrl.servers.vllm_server", description=main.__doc__)
    parser.add_argument("--options", required=True, help="ServerOptions as a JSON object")
    parser.add_argument("--die-with-parent", type=int, metavar="PID", help="end when this parent has ended, however it did")
    parser.add_argument("--lifeline-fd", type=int, metavar="FD", help="end when the other end of this pipe closes")
    given = parser.parse_args(arguments)
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        if given.die_with_parent is not None:
            lifeline.die_with_parent(given.die_with_parent)  # this process is killed, and the guardian ends the tree
        if given.lifeline_fd is not None:
            lifeline.watch(given.lifeline_fd)
        _, words, variables = prepare(from_json(given.options), os.environ)
        with VllmServer(words, variables) as server:
            status = server.wait()
        print(f"agentrl: {ended(status or 0)}", file=sys.stderr)
        return FAILED
    except ConfigError as error:
        print(f"agentrl: {error}", file=sys.stderr)
        return WRONG_CONFIG
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
