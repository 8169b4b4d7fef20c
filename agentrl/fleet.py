"""The rollout processes of a run: started, fed from the buffer, listened to, replaced when they die.

One reader thread a process. A process that dies or stays silent is ended and replaced a bounded number of times; its groups keep their
places and are dispatched again.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentrl import errors, wire
from agentrl.dispatch import Beat, Cancel, Failed, FromRollout, Play, Played, Ready, Serving, Setup, Suspect
from agentrl.errors import AgentRLError, WorkerDied
from agentrl.processes import Child, start_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.buffer import Dispatch
    from agentrl.records import Group, SamplingContract

SILENCE_S = 30.0
"""A rollout process beats once a second; one that is silent for this long is stuck. Imports happen before the first beat."""
START_S = 180.0
"""Longest time to import the environment, load the tokenizer and reach the engine."""
MOST_RESTARTS = 3
"""Of one rollout process in one run; the next death ends the run."""


@dataclass
class Member:
    """One rollout process."""

    child: Child
    sock: socket.socket
    started: bool = False
    """It has been ready once."""
    ready: bool = False
    """It takes groups."""
    groups: set[int] = field(default_factory=set)
    """Dispatched to it and not yet back."""


class Fleet:
    """Feeds groups to rollout processes.

    Args:
        setup: the first message to each process.
        size: how many processes.
        contract, seed, group_size, rival, judged: sent with every group.
        next_group: what to play next; None while nothing may be dispatched.
        on_played, on_lost, on_failure: called from reader threads.
        serving: the vLLM servers in use, for each process that starts; None for the embedded engine.
        on_suspect: called from reader threads with a vLLM server's URL and what it did.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        size: int,
        logs: Path,
        contract: SamplingContract,
        seed: int,
        group_size: int,
        rival: SamplingContract | None = None,
        judged: bool = False,
        next_group: Callable[[], Dispatch | None],
        on_played: Callable[[Group], None],
        on_lost: Callable[[int], None],
        on_failure: Callable[[AgentRLError], None],
        serving: Callable[[], Serving] | None = None,
        on_suspect: Callable[[str, str], None] = lambda url, why: None,
    ) -> None:
        self._serving = serving
        self._on_suspect = on_suspect
        self._setup = setup
        self._logs = logs
        self._contract = contract
        self._seed = seed
        self._group_size = group_size
        self._rival = rival
        self._judged = judged
        self._next_group = next_group
        self._on_played = on_played
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._stopping = False
        self._restarts = [0] * size
        self._members: list[Member | None] = [None] * size
        self.loop_lag_s = 0.0
        """The latest lag that a process reported."""

    def start(self) -> None:
        """Start all processes; groups flow as each one becomes ready."""
        for number in range(len(self._members)):
            self._start_member(number)

    def _start_member(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            child = start_child(
                f"rollout process {number}",
                "agentrl.rollout.worker",
                [str(theirs.fileno())],
                log=self._logs / f"rollout-{number}.log",
                pass_fds=[theirs.fileno()],
            )
        ours.settimeout(START_S)
        member = Member(child=child, sock=ours)
        with self._lock:
            wire.send(ours, self._setup)
            if self._serving is not None:
                wire.send(ours, self._serving())
            self._members[number] = member
        threading.Thread(target=self._supervise, args=(number, member), name=f"rollout-{number}", daemon=True).start()

    def pump(self) -> None:
        """Send out every group that may be dispatched, each to the process with the fewest."""
        with self._lock:
            while not self._stopping:
                ready = [member for member in self._members if member is not None and member.ready]
                if not ready:
                    return
                try:
                    dispatch = self._next_group()
                except AgentRLError as error:  # a task that cannot be had ends the run, whichever thread asked for it
                    self._on_failure(error)
                    return
                if dispatch is None:
                    return
                self._send_play(min(ready, key=lambda member: len(member.groups)), dispatch)

    def _send_play(self, member: Member, dispatch: Dispatch) -> None:
        member.groups.add(dispatch.index)
        play = Play(
            index=dispatch.index,
            task=dispatch.task,
            dispatched=dispatch.version,
            group_size=self._group_size,
            contract=self._contract,
            seed=self._seed,
            rival=self._rival,
            judged=self._judged,
        )
        try:
            wire.send(member.sock, play)
        except OSError:
            member.ready = False  # its reader thread sees the end too, and hands the group back

    def use(self, serving: Serving) -> None:
        """Tell every process which vLLM servers are in use from now on."""
        with self._lock:
            for member in self._members:
                if member is not None:
                    try:
                        wire.send(member.sock, serving)
                    except OSError:
                        member.ready = False

    def cancel(self, index: int) -> None:
        """Tell the process that plays a group to stop."""
        with self._lock:
            for member in self._members:
                if member is not None and index in member.groups:
                    member.groups.discard(index)
                    try:
                        wire.send(member.sock, Cancel(index=index))
                    except OSError:
                        member.ready = False

    def _supervise(self, number: int, member: Member) -> None:
        """Listen to a process until it ends. A bug here must end the run at once, not when the learner is tired of waiting."""
        try:
            self._listen(number, member)
        except BaseException as error:
            self._on_failure(WorkerDied(f"the thread that listens to {member.child.name} failed: {type(error).__name__}: {error}"))
            raise

    def _listen(self, number: int, member: Member) -> None:
        receiver: wire.Receiver[FromRollout] = wire.Receiver(member.sock, FromRollout)
        reason = ""
        try:
            while (message := receiver.receive()) is not None:
                if isinstance(message, Played):
                    member.groups.discard(message.group.index)
                    self._on_played(message.group)
                elif isinstance(message, Ready):
                    member.sock.settimeout(SILENCE_S)
                    member.started = member.ready = True
                    self.pump()
                elif isinstance(message, Beat):
                    self.loop_lag_s = message.loop_lag_s
                elif isinstance(message, Suspect):
                    self._on_suspect(message.url, message.why)
                elif isinstance(message, Failed):
                    self._stop_member(member)
                    kind = getattr(errors, message.kind, AgentRLError)
                    self._on_failure(kind(message.message))
                    return
        except TimeoutError:
            reason = f"it sent nothing for {member.sock.gettimeout():.0f} s"
        except OSError as error:  # wire.FrameError is one
            reason = str(error)
        if not self._stopping:
            self._replace(number, member, reason)

    def _replace(self, number: int, member: Member, reason: str) -> None:
        self._stop_member(member)
        what = member.child.describe_end() + (f" ({reason})" if reason else "")
        if self._restarts[number] >= MOST_RESTARTS or not member.started:
            self._on_failure(WorkerDied(f"{what}; it was restarted {self._restarts[number]} times"))
            return
        self._restarts[number] += 1
        self._start_member(number)
        for index in sorted(member.groups):
            self._on_lost(index)

    def _stop_member(self, member: Member) -> None:
        with self._lock:
            member.ready = False
        member.child.stop()
        member.sock.close()

    def stop(self) -> None:
        """End all processes and whatever they started."""
        with self._lock:
            self._stopping = True
            members = [member for member in self._members if member is not None]
        for member in members:
            member.sock.close()
            member.child.stop()
