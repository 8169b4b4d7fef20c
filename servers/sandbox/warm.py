"""Warm workers: programs forked from an interpreter that has already imported what they need, each in a sandbox of its own.

A program is a function of our own (`package.module:function`) that then runs untrusted code. It has user, pid, mount, network, IPC and host
name namespaces of its own, a fresh /tmp, a read-only system without the user's files and without installed packages but those that the pool
was given, no rights, a system call filter, and the limits of `Limits`. A clock outside ends it with all that it started. It costs
a few milliseconds instead of the tens that an interpreter takes to start. Linux 5.12 or newer, as root or as any user who may
make user namespaces; where that fails the pool raises `SandboxUnavailable` and nothing runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentrl.servers.sandbox import warm_zygote
from agentrl.servers.sandbox.ground import new_user
from agentrl.servers.sandbox.limits import Limits, SandboxUnavailable
from agentrl.servers.sandbox.syscalls import filter_program
from agentrl.servers.sandbox.view import view_of
from agentrl.servers.sandbox.warm_config import described, lean_packages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

PRELOAD = (
    *("abc", "array", "base64", "bisect", "calendar", "cmath", "collections", "collections.abc", "contextlib", "copy", "dataclasses"),
    *("datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers"),
    *("operator", "random", "re", "string", "textwrap", "time", "traceback", "typing", "unicodedata"),
)
"""What short programs commonly import. Not `threading`, nor what imports it: each fork would spend a third of a millisecond on it."""
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 20.0
"""Until a forked program has entered its sandbox; a busy machine is slow at making namespaces."""

_LIMITS = tuple(field.name for field in fields(Limits))
_OWN = tuple(f"agentrl.servers.sandbox.warm_{name}" for name in ("kernel", "root", "seccomp"))


class NoAnswer(SandboxUnavailable):
    """The interpreter that forks programs is late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program's first process ended, and all others with it."""

    status: Literal["exited", "signalled"]
    code: int
    """Exit status, or number of the signal."""
    cpu_s: float
    """Of the first process and those of its children that it waited for."""
    peak_mib: float
    lowered: bool = False
    """Whether it had lowered its own limit of processor time, below which the kernel then kills it."""


class WarmProgram:
    """A running program; its first process is the first of its pid namespace, so that its end is the end of all.

    Args:
        pidfd: a handle of that process.
        news: socket on which the zygote says how it ended.
    """

    def __init__(self, pidfd: int, news: socket.socket) -> None:
        self.pidfd = pidfd
        self.ended: Ended | None = None
        self._news = news

    @property
    def pid(self) -> int | None:
        """Its process id as this process sees it; None once it is gone."""
        for line in Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
                return pid if pid > 0 else None
        return None

    def fileno(self) -> int:
        """Descriptor that becomes readable when it has ended and `finish` will not wait."""
        return self._news.fileno()

    def kill(self) -> None:
        """End it and all that it started; may be called at any time."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def finish(self) -> Ended:
        """Wait for its end, which must be near: it has ended by itself or was killed. Everything is reaped then."""
        if self.ended is None:
            try:
                message, _ = _next_message(self._news, ANSWER_TIMEOUT_S)
                status = int(message["ended"])
            except SandboxUnavailable:
                self.kill()
                raise
            code = os.waitstatus_to_exitcode(status)
            how: Literal["exited", "signalled"] = "exited" if code >= 0 else "signalled"
            used = {name: message[name] for name in ("cpu_s", "peak_mib", "lowered")}
            self.ended = Ended(status=how, code=abs(code), **used)
        return self.ended

    def close(self) -> None:
        """Kill it if it still runs, reap it and free its handles; may be called again."""
        if self.pidfd < 0:
            return
        try:
            if self.ended is None:
                self.kill()
                with contextlib.suppress(SandboxUnavailable):  # the zygote is gone, and with it all that it forked
                    self.finish()
        finally:
            self._news.close()
            os.close(self.pidfd)
            self.pidfd = -1

    def __enter__(self) -> WarmProgram:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class WarmPool:
    """An interpreter that forks programs. Its methods may be called from several threads at once.

    Args:
        programs: functions that can be started, each as `package.module:function`; called with the numbers of their descriptors. Their
            modules, and what those import, may use the standard library and `packages` only.
        preload: modules to import before.
        packages: installed distributions that programs may import, each with what it needs; all others are out of sight, because data
            sets come as packages too.
    """

    def __init__(self, programs: Sequence[str], *, preload: Sequence[str] = PRELOAD, packages: Sequence[str] = ()) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            "programs": list(programs),
            "own": list(_OWN),
            "lean": lean_packages([*_OWN, *(name.partition(":")[0] for name in programs)]),
            "preload": list(preload),
            "user": new_user(),
            "view": described(view_of(tuple(packages))),
            "filter": filter_program().hex(),
        }
        self._process = _start(theirs)
        theirs.close()
        try:
            warm_zygote.send(self._control, config)
            _next_message(self._control, START_TIMEOUT_S)
        except SandboxUnavailable as error:
            self.close()
            raise SandboxUnavailable(
                f"cannot start warm workers: {error}; they need Linux 5.12 or newer and the right to make user namespaces (in a container: "
                "--security-opt seccomp=unconfined; on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
            ) from None

    def start(self, program: str, descriptors: Sequence[int] = (), *, limits: Limits | None = None) -> WarmProgram:
        """Fork a program into a sandbox of its own; returns when it is inside.

        Args:
            program: one of the pool's.
            descriptors: what it gets, as numbers 3, 4 and so on; the caller keeps its own copies.
            limits: of it and all that it starts; time is up to the caller (`warm_watch`).
        Raises: `SandboxUnavailable` where it could not be started.
        """
        (started,) = self.start_together([(program, descriptors)], limits=limits)
        return started

    def start_together(self, programs: Sequence[tuple[str, Sequence[int]]], *, limits: Limits | None = None) -> list[WarmProgram]:
        """Start several programs, each with its descriptors, as `start` does; where one cannot be started, none is."""
        waiting: list[socket.socket] = []
        started: list[WarmProgram] = []
        try:
            for program, descriptors in programs:
                waiting.append(self._ask_for(program, descriptors, limits or Limits()))
            while waiting:
                started.append(self._entered(waiting[0]))
                del waiting[0]
        except BaseException:
            for one in started:
                one.close()
            for news in waiting:
                news.close()
            raise
        return started

    def _ask_for(self, program: str, descriptors: Sequence[int], limits: Limits) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"program": program, "limits": {name: getattr(limits, name) for name in _LIMITS}}
        with theirs, self._lock:
            if self._process.poll() is not None:
                ours.close()
                raise SandboxUnavailable("the interpreter that forks warm workers has ended; open a new pool")
            warm_zygote.send(self._control, request, [theirs.fileno(), *descriptors])
        return ours

    def _entered(self, news: socket.socket) -> WarmProgram:
        try:
            _, received = _next_message(news, ANSWER_TIMEOUT_S)
        except NoAnswer:
            self.close()  # there is no handle yet to end that program with
            raise
        return WarmProgram(received[0], news)

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    @property
    def process_id(self) -> int:
        """Of the process that was started; below it are the zygote and all programs."""
        return self._process.pid

    def abandon(self) -> None:
        """Let go of what this process has inherited as a fork; the pool is its parent's."""
        self._control.close()
        self._process.returncode = 0

    def close(self) -> None:
        """End the interpreter and all programs that it forked; may be called again."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> WarmPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _start(control: socket.socket) -> subprocess.Popen[bytes]:
    """The zygote's process: no site packages, and of the environment only what finds libraries."""
    keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}  # a fork takes no threads along
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(Path(warm_zygote.__file__).resolve()), str(control.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(control.fileno(),),
        start_new_session=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **single, **keep},
    )


def _next_message(news: socket.socket, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
    """The next message; raises `SandboxUnavailable` for none in time, the end, and a failure that is reported."""
    news.settimeout(timeout_s)
    started = time.monotonic()
    try:
        message, descriptors = warm_zygote.receive(news)
    except TimeoutError:
        raise NoAnswer(f"no answer within {time.monotonic() - started:.0f} s") from None
    except OSError as error:
        raise SandboxUnavailable(str(error)) from None
    if message is None:
        raise SandboxUnavailable("the interpreter that forks warm workers has ended")
    if "failed" in message:
        for fd in descriptors:
            os.close(fd)
        raise SandboxUnavailable(message["failed"])
    return message, descriptors
