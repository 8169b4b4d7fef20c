"""Publishing weights to vLLM servers: collected once, brought to all of them at the same time, counted one by one.

    pause -> start -> update -> finish with the version -> prefix cache -> read back -> resume

A server that fails at any stage does not have the version, and must not be used until `bring_up_to_date` has succeeded for it. A LoRA
version has a name of its own instead, and stops nothing: load -> read back.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_transports.swap import Swap, disown
from agentrl.errors import AgentRLError, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch

    from agentrl.engines.vllm_control import Control
    from agentrl.engines.vllm_probe import Probe
    from agentrl.engines.vllm_transports.base import Shipment, Transport
    from agentrl.records import Version

SHOWN_NAMES = 5
"""Names of weights that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a version on one server."""

    url: str
    error: str = ""
    """Why the server does not have it; empty where it does."""
    paused_s: float = 0.0
    """Seconds for which generation stood still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of a version."""

    version: Version
    model: str
    """What requests that want it ask for."""
    checksum: str
    """Of what was sent, and of what every server that has it read."""
    num_bytes: int
    collect_s: float
    """Seconds of taking the weights from the learner; generation went on."""
    outcomes: tuple[Outcome, ...]

    @property
    def served(self) -> tuple[str, ...]:
        """URLs of the servers that have it."""
        return tuple(one.url for one in self.outcomes if not one.error)

    @property
    def failed(self) -> dict[str, str]:
        """URL and reason of those that do not: not to be used before `bring_up_to_date`."""
        return {one.url: one.error for one in self.outcomes if one.error}


class VllmPublisher:
    """The servers as the learner sees them: blocking, for several threads.

    Args:
        transport: how weights travel.
        control: makes the control routes of a URL.
        pause: `keep` freezes the requests in flight, `wait` lets them finish first.
        kv: `keep` goes on with the KV cache of frozen requests, `recompute` computes it again under the new weights.
        partial: what is sent is not the whole model, as an adapter is not; otherwise each publish must cover all of it.
        expected: names and shapes of the model's weights; by default those of the first publish.
        clock: seconds, for durations.
    """

    def __init__(
        self,
        transport: Transport,
        control: Callable[[str], Control],
        *,
        pause: Literal["keep", "wait"] = "keep",
        kv: Literal["keep", "recompute"] = "keep",
        partial: bool = False,
        expected: Mapping[str, tuple[int, ...]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._control = control
        self._swap = Swap(pause=pause, kv=kv, clock=clock)
        self._partial = partial
        self._expected = dict(expected) if expected is not None else None
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: Shipment | None = None
        self._probe: Probe | None = None
        self._clean: set[str] = set()
        """Servers whose last update is known to be closed."""

    def check(self, servers: Sequence[str]) -> None:
        """Raise `ConfigError` for a server that the transport does not reach; before the first publish, and for each one that joins."""
        for url in servers:
            self._transport.check(self._control(url))

    def publish(
        self, weights: Iterable[tuple[str, torch.Tensor]], version: Version, servers: Sequence[str], probe: Probe | None = None
    ) -> Published:
        """Bring a version to these servers.

        Args:
            weights: by the names of the model's own `state_dict`, tied ones once; for an adapter by peft's.
            version: what tokens are stamped with from now on.
            servers: URLs.
            probe: the learner's own log-probs under this version; each server's must agree before it counts.

        Raises `PublishError` for weights that do not fit, and where no server has the version afterwards.
        """
        with self._lock:
            started = self._clock()
            self._newest = None
            shipment = self._transport.collect(self._checked(weights), version)
            self._newest, self._probe = shipment, probe
            collect_s = self._clock() - started
            controls = [self._control(url) for url in servers]
            with ThreadPoolExecutor(max_workers=max(1, len(controls)), thread_name_prefix="publish") as threads:
                outcomes = tuple(threads.map(lambda server: self._bring(server, shipment, probe), controls))
            if not any(not one.error for one in outcomes):
                reasons = "; ".join(one.error for one in outcomes) or "there is no server"
                raise PublishError(f"version {version_text(version)} reached no vLLM server: {reasons}")
            self._transport.tidy(controls)
            return Published(
                version=version,
                model=shipment.model,
                checksum=shipment.checksum,
                num_bytes=shipment.num_bytes,
                collect_s=collect_s,
                outcomes=outcomes,
            )

    @property
    def newest(self) -> Shipment | None:
        """What `bring_up_to_date` brings; None where the last publish did not get as far as that."""
        return self._newest

    def bring_up_to_date(self, url: str) -> Outcome:
        """Bring the newest version to a server that failed, was restarted or joins; it may be used where the outcome has no error."""
        with self._lock:
            if self._newest is None:
                return Outcome(url=url, error="nothing was published yet")
            return self._bring(self._control(url), self._newest, self._probe)

    def close(self) -> None:
        """Remove what lies in shared folders. The servers stay as they are."""
        with self._lock:
            self._newest = None
            self._transport.close()

    def _checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same stream; raises `PublishError` at its end, or at the first one that does not fit."""
        expected, seen = self._expected, {}
        for name, tensor in weights:
            seen[name] = tuple(tensor.shape)
            if expected is not None and expected.get(name) != seen[name]:
                what = f"of shape {expected[name]}" if name in expected else "under no such name"
                raise PublishError(f"weight {name!r} of shape {seen[name]} was sent; the model has it {what}")
            yield name, tensor
        missing = sorted(set(expected or ()) - set(seen))
        if missing and not self._partial:
            raise PublishError(f"{len(missing)} weights of the model were not sent: {', '.join(missing[:SHOWN_NAMES])} ...")
        if expected is None:
            self._expected = seen

    def _bring(self, server: Control, shipment: Shipment, probe: Probe | None) -> Outcome:
        paused_s = 0.0
        clean = server.url in self._clean
        self._clean.discard(server.url)
        try:
            if self._transport.swaps:
                paused_s = self._swap.run(server, self._transport, shipment, clean=clean)
            else:
                self._transport.deliver(server, shipment)
                self._transport.confirm(server, shipment)
            if probe is not None:
                self._compare(server, shipment, probe)
        except (AgentRLError, OSError) as error:  # the other servers go on, and this one does not count
            return Outcome(url=server.url, error=str(error) or type(error).__name__, paused_s=paused_s)
        self._clean.add(server.url)
        return Outcome(url=server.url, paused_s=paused_s)

    def _compare(self, server: Control, shipment: Shipment, probe: Probe) -> None:
        try:
            probe.compare(server, shipment.model)
        except AgentRLError:
            if self._transport.swaps:
                disown(server)
            raise
