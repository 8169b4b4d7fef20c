"""An environment worker: `python -m agentrl.rollout.host FD PARENT`. Environments, tools and rewards run here, where they can be killed.

One thread an episode, so that environments that wait overlap. A worker never decides about time: its parent owns every deadline and
kills the whole process group.
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from queue import SimpleQueue

from agentrl import wire
from agentrl.errors import ConfigError
from agentrl.lifeline import die_with_parent
from agentrl.rollout.hosted import Blueprint, HostedEpisode
from agentrl.rollout.messages import Close, Closed, Failed, Grade, Open, Ready, Request, Response, Sample, Sampled, Setup
from agentrl.rollout.user_values import clean, describe, frames_of, text_of


class Host:
    """Reads requests off the socket and hands each to its episode's thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._episodes: dict[int, _Running] = {}

    def run(self) -> None:
        """Set up, then serve until the parent closes the socket; at once where the set-up fails."""
        receiver: wire.Receiver[Request] = wire.Receiver(self._sock, Request)
        setup = receiver.receive()
        if not isinstance(setup, Setup):
            return
        try:
            blueprint = Blueprint.load(setup)
        except BaseException as error:  # the boundary to the environment's module
            self._send(Failed(call=0, reason=_setup_fault(setup.spec, error), traceback=frames_of(error)))
            return
        self._send(Ready())
        while (request := receiver.receive()) is not None:
            if isinstance(request, Open):
                running = self._episodes[request.session] = _Running(HostedEpisode(blueprint, self._send), SimpleQueue())
                running.requests.put(request)
                threading.Thread(target=self._serve, args=(request.session, running), daemon=True).start()
            elif not isinstance(request, Setup) and (known := self._episodes.get(request.session)) is not None:
                known.take(request)

    def _serve(self, number: int, running: _Running) -> None:
        while not isinstance(request := running.requests.get(), Close):
            answer = running.episode.answer(request)
            self._send(answer)
            if isinstance(request, Grade) or (isinstance(request, Open) and isinstance(answer, Failed)):
                break
        running.episode.close()
        del self._episodes[number]
        self._send(Closed(session=number))

    def _send(self, message: Response) -> None:
        try:
            frame = wire.pack(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            said = clean(f"what the environment gave cannot be sent: {type(error).__name__}: {error}")
            if isinstance(message, Sample):  # its answer is awaited here
                return self._episodes[message.session].take(Sampled(session=message.session, number=message.number, refused=said))
            frame = wire.pack(Failed(call=getattr(message, "call", 0), reason=said))
        try:
            with self._sending:
                self._sock.sendall(frame)
        except OSError:
            return  # the parent is gone; the reading thread sees that too


@dataclass(frozen=True, slots=True)
class _Running:
    """An episode on its thread, and what that is still to answer."""

    episode: HostedEpisode
    requests: SimpleQueue[Request]

    def take(self, request: Request) -> None:
        """Take what came in: turns go to the call that waits for them, and a close interrupts an episode that is being played."""
        if isinstance(request, Sampled):
            self.episode.sampled(request)
            return
        if isinstance(request, Close):
            self.episode.cancel()
        self.requests.put(request)


def _setup_fault(spec: str, error: BaseException) -> str:
    return clean(text_of(error)) if isinstance(error, ConfigError) else describe(spec, "making it", error)


def main() -> None:
    """Entry point of the process."""
    die_with_parent(int(sys.argv[2]))
    faulthandler.enable()
    os.dup2(2, 1)  # what user code prints goes to the log
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        Host(socket.socket(fileno=int(sys.argv[1]))).run()
    except BaseException:
        traceback.print_exc()
    # nothing is waited for: the parent is gone, or has no use for this process any more; what user code started goes with it
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
