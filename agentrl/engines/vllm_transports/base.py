"""What every transport of weights does, and what it hands from one step to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import torch

    from agentrl.engines.vllm_control import Control
    from agentrl.records import Version

BASE_MODEL = "policy"
"""What the servers call the model that they were started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """One version, collected once and ready for any number of servers."""

    version: Version
    model: str
    """What requests that want this version ask for."""
    names: tuple[str, ...]
    """Of the tensors, in the order in which they came."""
    num_bytes: int
    checksum: str
    """Of what was collected."""
    paths: tuple[Path, ...] = ()
    """Files or folders that hold it, where the transport uses any."""


class Transport(Protocol):
    """A way for weights to reach servers. `collect` and `tidy` run on one thread, `deliver` and `confirm` on one a server."""

    swaps: bool
    """True where a server's weights change under the requests in flight, which are paused meanwhile; False where each version has a
    name of its own and nothing stands still."""

    def check(self, server: Control) -> None:
        """Raise `ConfigError` with the cure where this server cannot be reached this way. Called once, before the first publish."""
        ...

    def collect(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> Shipment:
        """Take a version from the learner; raises `PublishError` where it cannot be held."""
        ...

    def deliver(self, server: Control, shipment: Shipment) -> None:
        """Bring a version to one server; where weights are swapped, between the start and the finish of an update."""
        ...

    def confirm(self, server: Control, shipment: Shipment) -> None:
        """Raise `RouteFailed` unless the server has read what was sent."""
        ...

    def tidy(self, servers: Sequence[Control]) -> None:
        """Remove what no request can need any more; failures to do so are not errors."""
        ...

    def close(self) -> None:
        """Remove everything that was written."""
        ...
