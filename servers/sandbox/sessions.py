"""Persistent interpreters in a sandbox. What comes back from one is data that its code may have forged: sized, dated, never trusted.

Requests and answers have streams of their own, apart from what is printed, and every request has a number that cannot be guessed: what is
printed can neither end a call nor shift the next one. Between calls everything in the session stands still.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import selectors
import threading
import time
from typing import TYPE_CHECKING

from agentrl.servers.sandbox import tree
from agentrl.servers.sandbox.limits import SandboxUnavailable, Turn, as_unavailable
from agentrl.servers.sandbox.pump import LOOK_S, LOOKS_A_WALK, feed, look, take, verdict

if TYPE_CHECKING:
    from agentrl.servers.sandbox.folder import Quota
    from agentrl.servers.sandbox.languages import Language, Launcher
    from agentrl.servers.sandbox.limits import Limits
    from agentrl.servers.sandbox.running import Fault, Running

GRACE_S = 1.0
"""From the first interruption of a call until the session is killed."""
FORCE_S = 0.5
"""Before that: from here on an interruption kills, what runs in the background too."""
MOST_ANSWER_BYTES = 4096
"""Of the stream of answers in one call; an answer is a number and a status."""
SESSION_CPU_S = 10**6
"""Of a process: the CPU time of a call is watched from here, and a session may have many."""


@dataclasses.dataclass
class _Call:
    """One request on its way."""

    number: str
    request: memoryview
    began: float
    deadline: float
    before: set[int]
    cpu_s: float
    output: bytearray = dataclasses.field(default_factory=bytearray)
    answers: bytearray = dataclasses.field(default_factory=bytearray)
    fault: Fault | None = None
    code: int | None = None
    interruptions: int = 0
    looks: int = 0


class LocalSession:
    """A persistent interpreter, started at the first call and again after it was lost.

    Args:
        launcher: starts it.
        language: which one.
        limits: of each call; memory, processes and files are those of the session.
        quota: of the folder.
    """

    def __init__(self, launcher: Launcher, language: Language, limits: Limits, quota: Quota) -> None:
        self._launcher, self._language, self._limits, self._quota = launcher, language, limits, quota
        self._watch = quota.watch(limits.folder_mib << 20)
        self._running: Running | None = None
        self._writes = True
        self._closed = False
        self._lock = threading.Lock()

    def run(self, code: str, timeout_s: float | None = None) -> Turn:
        """Run a piece of code; see `agentrl.servers.sandbox.limits.Session`."""
        if refusal := self._language.refusal(code):
            return Turn(status="exited", code=2, output=refusal.encode(), seconds=0, reason="", alive=True)
        limits = self._limits if timeout_s is None else dataclasses.replace(self._limits, wall_s=timeout_s)
        with self._lock:
            self._check_open()
            try:
                with as_unavailable("a session could not be used"):
                    turn = self._run(code.encode("utf-8", errors="replace"), limits)
            except BaseException:
                self._end()
                raise
            self._check_open()  # else it was another thread that ended what ran
            return turn

    def _run(self, code: bytes, limits: Limits) -> Turn:
        running = self._running
        if running is None:
            self._writes, self._watch = not self._quota.over, self._quota.watch(limits.folder_mib << 20)
            command = self._language.command(self._launcher)
            running = self._running = self._launcher.start(command, limits, cpu_s=SESSION_CPU_S, writes=self._writes)
        running.limits, running.kills_before = limits, running.memory_kills()
        number, now = secrets.token_hex(8), time.monotonic()
        request = memoryview(self._language.request(number, code))
        call = _Call(number, request, now, now + limits.wall_s, set(tree.members(running.root)), tree.use(running.root).cpu_s)
        tree.resume(running.root)
        answered = self._exchange(running, call)
        if answered and call.fault is not None:
            with contextlib.suppress(IndexError):  # it has ended
                self._language.end_interrupted(_driver(running), running.root, call.before)
        if answered and tree.halt(running.root):
            if call.fault is not None:
                _drain(running, call)  # the last words of what was interrupted are no part of the next call's
            excess = self._quota.measure(limits.folder_mib << 20)
            if excess is None or not self._writes:
                return self._answer(call)
            call.fault = "output", excess
        return self._lost(running, call)

    def close(self) -> None:
        """End it with everything that it started; may be called again."""
        self._closed = True
        if (running := self._running) is not None:
            running.kill()  # so that a call in another thread ends
        with self._lock:
            self._end()

    def _check_open(self) -> None:
        if self._closed:
            self._end()
            raise SandboxUnavailable("this session was closed; start another one")

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.reap()

    def _exchange(self, running: Running, call: _Call) -> bool:
        """Send the request and collect output until the answer comes; False where the session ended, or must be."""
        looking = call.began + LOOK_S
        with selectors.DefaultSelector() as selector:
            for fd in (running.stdout, running.stderr, running.ended_fd):
                selector.register(fd, selectors.EVENT_READ)
            selector.register(running.stdin, selectors.EVENT_WRITE)
            while True:
                for key, _ in selector.select(max(0.0, min(looking, call.deadline) - time.monotonic())):
                    if key.fd == running.stdin:
                        call.request = feed(key.fd, call.request)
                        if not call.request:
                            selector.unregister(key.fd)
                    elif key.fd == running.ended_fd:
                        _drain(running, call)
                        return False
                    elif key.fd == running.stderr:
                        self._take_output(running, call, selector)
                    elif self._is_answered(running, call, selector):
                        _drain(running, call)
                        return True
                now = time.monotonic()
                if now >= call.deadline:
                    if call.fault is not None:
                        return False
                    call.fault = "timeout", f"stopped after {running.limits.wall_s:g} s"
                if now >= looking or (call.fault and not call.interruptions):
                    self._look(running, call, now)
                    looking = now + LOOK_S + 2 * (time.monotonic() - now)  # at most half of the time is spent looking

    def _take_output(self, running: Running, call: _Call, selector: selectors.BaseSelector) -> None:
        most_bytes = running.limits.output_kib << 10
        if not take(running.stderr, call.output, most_bytes):
            selector.unregister(running.stderr)
        if len(call.output) > most_bytes and call.fault is None:
            call.fault = "output", f"stopped after {running.limits.output_kib} KiB of output"

    def _is_answered(self, running: Running, call: _Call, selector: selectors.BaseSelector) -> bool:
        """Whether this request's own answer has come; others are ignored, up to a size."""
        if not take(running.stdout, call.answers, MOST_ANSWER_BYTES):
            selector.unregister(running.stdout)  # the session ends, or will be ended by the clock
            return False
        if len(call.answers) > MOST_ANSWER_BYTES:
            selector.unregister(running.stdout)
            call.fault = call.fault or ("output", "stopped because it used the session's own channel")
            return False
        for line in bytes(call.answers).splitlines(keepends=True):
            words = line.split()
            if line.endswith(b"\n") and len(words) == 2 and words[0] == call.number.encode() and words[1].isdigit() and len(words[1]) < 4:
                call.code = int(words[1])
                return True
        return False

    def _look(self, running: Running, call: _Call, now: float) -> None:
        """Watch the limits; once one is broken, interrupt, again and again until the grace is over."""
        call.looks += 1
        if call.fault is None:
            full = self._watch if call.looks % LOOKS_A_WALK == 0 else None
            call.fault = look(running, full, call.cpu_s)
        if call.fault is None:
            return
        if call.interruptions == 0:
            call.deadline = now + GRACE_S
        with contextlib.suppress(IndexError):  # it has ended
            self._language.interrupt(_driver(running), running.root, call.before, again=now >= call.deadline - FORCE_S)
        call.interruptions += 1

    def _answer(self, call: _Call) -> Turn:
        seconds, output = time.monotonic() - call.began, bytes(call.output[: self._limits.output_kib << 10])
        if call.fault is None:
            return Turn(status="exited", code=call.code, output=output, seconds=seconds, reason="", alive=True)
        status, reason = call.fault
        return Turn(status=status, code=None, output=output, seconds=seconds, reason=f"{reason}; the session goes on", alive=True)

    def _lost(self, running: Running, call: _Call) -> Turn:
        self._running = None
        running.kill()
        end = running.reap()
        status, code, reason = verdict(end, call.fault, running)
        reason = reason or f"the session ended with status {code}"
        return Turn(
            status=status, code=code, output=bytes(call.output[: self._limits.output_kib << 10]), seconds=time.monotonic() - call.began,
            reason=f"{reason}; its state is lost, and the next call starts a new session", alive=False,
        )  # fmt: skip


def _driver(running: Running) -> int:
    """Process of the interpreter; IndexError where it has not begun, or has ended."""
    return tree.children(running.root)[0] if running.confined else running.root


def _drain(running: Running, call: _Call) -> None:
    """Take what was printed already: it is in the pipe."""
    most_bytes = running.limits.output_kib << 10
    while len(call.output) <= most_bytes:
        before = len(call.output)
        if not take(running.stderr, call.output, most_bytes) or len(call.output) == before:
            return
