"""Weights without a shared disk: mapped from memory on the learner's machine, over TCP on another.

Over TCP every worker connects by itself, shows the token that it was told over HTTP and reads the tensors (`agentrl.transfer_format`).
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_control import RouteFailed
from agentrl.engines.vllm_transports.filesystem import BACKEND_FLAG, FilesystemTransport, check_shared
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.engines.vllm_control import Control
    from agentrl.engines.vllm_transports.base import Shipment
    from agentrl.engines.vllm_transports.store import Placed

_STRANGERS = 16
"""Connections with a wrong token that are turned away before the sender gives up."""


class StreamTransport(FilesystemTransport):
    """Holds each version in memory once; servers here map it, servers elsewhere are sent it.

    Args:
        dtype: type of the servers' weights; None sends the learner's own.
        remote: servers that are on this machine by their address and see none of its memory, such as containers.
    """

    def __init__(self, *, dtype: str | None = None, remote: Sequence[str] = ()) -> None:
        super().__init__(None, dtype=dtype)
        self._remote = frozenset(remote)

    def check(self, server: Control) -> None:
        """Raise `ConfigError` for a local server that does not see this machine's memory, or a remote one that no address leads to."""
        if self._maps(server):
            check_shared(server, self.folder)
            return
        try:
            address_towards(server.url)
            server.rpc("agentrl_received")
        except (OSError, RouteFailed) as error:
            raise ConfigError(f"{server.url} cannot be sent weights over TCP: {error}. Start it with {BACKEND_FLAG}") from error

    def deliver(self, server: Control, shipment: Shipment) -> None:
        """Have the server map the weights, or send them."""
        if not self._maps(server):
            self._send(server, shipment)
            return
        for path in shipment.paths:
            layout = [[one.name, one.dtype, list(one.shape), one.offset] for one in self.placed if one.path == path]
            info = {"kind": "shm", "version": version_text(shipment.version), "path": str(path), "layout": layout}
            server.command("/update_weights", {"update_info": info})

    def _maps(self, server: Control) -> bool:
        return server.url not in self._remote and is_local(server.url)

    def _send(self, server: Control, shipment: Shipment) -> None:
        workers = int(server.read("/get_world_size", "world_size"))
        with Sender(self.placed, address_towards(server.url), workers=workers, timeout_s=server.timeout_s) as sender:
            host, port = sender.address
            info = {"kind": "tcp", "version": version_text(shipment.version), "host": host, "port": port, "token": sender.token}
            server.command("/update_weights", {"update_info": info})


class Sender:
    """Offers weights on a TCP port to a known number of workers, each on a connection of its own; a context manager.

    Args:
        placed: what to send, in this order.
        address: this machine's, as the workers see it.
        workers: how many will come.
        timeout_s: longest wait for one to come, and for one to take what is sent.
    """

    def __init__(self, placed: Sequence[Placed], address: str, *, workers: int, timeout_s: float) -> None:
        self.token = secrets.token_hex(16)
        self._placed = placed
        self._timeout_s = timeout_s
        self._listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._listener.settimeout(timeout_s)
        self._thread = threading.Thread(target=self._serve, args=(workers,), name="weights-sender", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # wakes `accept`; it has nobody left to wait for
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(self._timeout_s)

    def _serve(self, workers: int) -> None:
        senders = []
        for _ in range(workers + _STRANGERS):
            try:
                sock, _peer = self._listener.accept()
            except OSError:  # nobody else comes, or the update is over
                break
            sock.settimeout(self._timeout_s)
            thread = threading.Thread(target=self._attend, args=(sock,), name="weights-connection", daemon=True)
            thread.start()
            senders.append(thread)
        for thread in senders:
            thread.join(self._timeout_s)

    def _attend(self, sock: socket.socket) -> None:
        """Send everything to one worker. One that breaks off is seen by its server, whose update then fails."""
        from agentrl.transfer_format import receive_header, send_end, send_header

        with sock, contextlib.suppress(OSError):
            greeting = receive_header(sock) or {}
            if not hmac.compare_digest(str(greeting.get("token")).encode(), self.token.encode()):
                return
            for one in self._placed:
                send_header(sock, {"name": one.name, "dtype": one.dtype, "shape": list(one.shape), "nbytes": one.num_bytes})
                with one.path.open("rb") as file:
                    sock.sendfile(file, one.offset, one.num_bytes)
            send_end(sock)


def is_local(url: str) -> bool:
    """Whether the host of a URL is this machine, by one of its own addresses."""
    for family, kind, protocol, _, address in _addresses(url):
        try:
            with socket.socket(family, kind, protocol) as sock:
                sock.bind((address[0], 0))  # only an own address can be bound
                return True
        except OSError:
            continue
    return False


def address_towards(url: str) -> str:
    """The address under which the host of a URL sees this machine; raises `OSError` where no route leads there."""
    for family, _, _, _, address in _addresses(url):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:  # connecting one sends nothing
            sock.connect((address[0], 9))
            return str(sock.getsockname()[0])
    raise OSError(f"{url} has no address")


def _addresses(url: str) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    host = urlsplit(url).hostname or ""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [(family, kind, protocol, name, (str(address[0]), 0)) for family, kind, protocol, name, address in found]
