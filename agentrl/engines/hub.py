"""The engine's end of its socket: many clients, one thread, nothing that blocks but an idle wait.

The decode loop asks for messages between two tokens; answers go out as far as the sockets take them, the rest at the next turn.
"""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrl import wire

if TYPE_CHECKING:
    from collections.abc import Callable

_LISTENER = 0


@dataclass(slots=True, kw_only=True)
class _Client:
    sock: socket.socket
    parser: wire.Parser[Any]
    unsent: bytearray = field(default_factory=bytearray)


class Hub:
    """Accepts clients on a listening socket and exchanges frames with them.

    Args:
        listener: bound and listening; taken over.
        kind: type of the messages that come in.
        greeting: makes the first message to each client.
    """

    def __init__(self, listener: socket.socket, kind: Any, greeting: Callable[[], object]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._kind = kind
        self._greeting = greeting
        self._clients: dict[int, _Client] = {}
        self._next = _LISTENER + 1
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, _LISTENER)

    def poll(self, timeout_s: float | None) -> list[tuple[int, Any]]:
        """Messages that have come in, as (client, message); None as message says that the client is gone.

        Args:
            timeout_s: longest wait for a first one; None waits for ever, 0 not at all.
        """
        received: list[tuple[int, Any]] = []
        for key, events in self._selector.select(timeout_s):
            if key.data == _LISTENER:
                self._accept()
                continue
            if events & selectors.EVENT_WRITE:
                self._flush(key.data)
            if events & selectors.EVENT_READ:
                received += self._read(key.data)
        return received

    def send(self, client: int, message: object) -> None:
        """Send a message, or queue what the socket does not take; a client that is gone is ignored."""
        if client in self._clients:
            self._clients[client].unsent += wire.pack(message)
            self._flush(client)

    def broadcast(self, message: object, timeout_s: float) -> None:
        """Send a last message to everyone and wait until it is gone, at most so long."""
        self._accept()
        for client in list(self._clients):
            self.send(client, message)
        deadline = time.monotonic() + timeout_s
        while any(client.unsent for client in self._clients.values()) and time.monotonic() < deadline:
            self.poll(deadline - time.monotonic())

    def close(self) -> None:
        """Drop all clients and stop listening."""
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            client, self._next = self._next, self._next + 1
            self._clients[client] = _Client(sock=sock, parser=wire.Parser(self._kind))
            self._selector.register(sock, selectors.EVENT_READ, client)
            self.send(client, self._greeting())

    def _read(self, client: int) -> list[tuple[int, Any]]:
        if client not in self._clients:
            return []
        entry = self._clients[client]
        try:
            data = entry.sock.recv(1 << 20)
            messages = entry.parser.feed(data)
        except BlockingIOError:
            return []
        except OSError:  # reset, or no frame of this protocol
            data, messages = b"", []
        received: list[tuple[int, Any]] = [(client, message) for message in messages]
        if not data:
            self._drop(client)
            received.append((client, None))
        return received

    def _flush(self, client: int) -> None:
        entry = self._clients[client]
        try:
            while entry.unsent:
                del entry.unsent[: entry.sock.send(entry.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # reading sees the end too, and tells the owner
            entry.unsent.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if entry.unsent else 0)
        if self._selector.get_key(entry.sock).events != events:
            self._selector.modify(entry.sock, events, client)

    def _drop(self, client: int) -> None:
        sock = self._clients.pop(client).sock
        self._selector.unregister(sock)
        sock.close()
