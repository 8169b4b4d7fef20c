"""Changing a server's weights under its requests: one order of steps for every transport that swaps them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_control import BROKEN, RouteFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.engines.vllm_control import Control
    from agentrl.engines.vllm_transports.base import Shipment, Transport

QUICK_S = 30.0
"""Longest wait for steps that move no weights, so that a server that is stuck does not hold up the others for as long as a load takes."""
CLEANUP_S = 5.0
"""Longest wait for each call that cleans up after a failure: the server may be gone, and the others wait for the publish to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Pause, start, update, finish with the version, prefix cache, read back, resume.

    An update that failed half-way has left some layers new and some old. Nothing that such a server samples may be taken for a version:
    its requests are aborted and it is stamped as broken before it goes on.
    """

    pause: Literal["keep", "wait"]
    """Freeze the requests in flight, or let them finish first."""
    kv: Literal["keep", "recompute"]
    """What frozen requests go on with."""
    clock: Callable[[], float] = time.monotonic

    def run(self, server: Control, transport: Transport, shipment: Shipment, *, clean: bool) -> float:
        """Bring a shipment to a server; returns the seconds for which it stood still.

        Args:
            server: which one.
            transport: that collected the shipment.
            shipment: what to bring.
            clean: the server's last update is known to be closed.

        Raises `RouteFailed`, or what the transport raises.
        """
        started = self.clock()
        try:
            query = {"mode": self.pause, "clear_cache": "true" if self.clears else "false"}
            server.command("/pause", query=query, timeout_s=QUICK_S if self.pause == "keep" else None)
            if not clean:
                give_up(server)
            self._update(server, transport, shipment)
        except BaseException:
            with contextlib.suppress(RouteFailed):
                self._resume(server, timeout_s=CLEANUP_S)
            raise
        self._resume(server, timeout_s=QUICK_S)
        return self.clock() - started

    @property
    def clears(self) -> bool:
        """Whether the pause drops the KV cache. After `wait` nothing is in flight that could keep any of it."""
        return self.kv == "recompute" or self.pause == "wait"

    def _update(self, server: Control, transport: Transport, shipment: Shipment) -> None:
        try:
            server.command("/start_weight_update", timeout_s=QUICK_S)
            transport.deliver(server, shipment)
            server.command("/finish_weight_update", {"weight_version": version_text(shipment.version)})
            if not self.clears:
                # It declines while frozen requests hold blocks. Requests carry their version as a salt of the cache, so that later
                # ones do not meet what is left; where none are in flight this frees the room at once.
                server.command("/reset_prefix_cache", query={"reset_running_requests": "false"})
            transport.confirm(server, shipment)
        except BaseException:
            disown(server)
            raise

    @staticmethod
    def _resume(server: Control, timeout_s: float) -> None:
        server.command("/resume", timeout_s=timeout_s)


def give_up(server: Control) -> None:
    """Close an update that is still open on a server, whoever began it: what it has buffered would be mixed into the next one.

    A server without agentrl's extension has no such call; there the start of the next update says what is wrong.
    """
    with contextlib.suppress(RouteFailed):
        server.post("/collective_rpc", {"method": "agentrl_abort"}, timeout_s=CLEANUP_S)


def disown(server: Control) -> None:
    """Stamp a server as broken and abort its requests.

    All is tried even where it does not answer: one that was only stopped for a while does it when it goes on.
    """
    for path, body in (("/update_weight_version", {"new_version": BROKEN}), ("/abort_requests", {})):
        with contextlib.suppress(RouteFailed):
            server.post(path, body, timeout_s=CLEANUP_S)
    give_up(server)
