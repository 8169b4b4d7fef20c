"""Weights from GPU to GPU by vLLM's own NCCL backend: the servers receive what the learner broadcasts, tensor by tensor.

Each server forms a group of its own with the learner, which is rank 0, so that one server's end leaves the others' groups alone.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_control import RouteFailed
from agentrl.engines.vllm_transports.base import BASE_MODEL, Shipment
from agentrl.engines.vllm_transports.stream import address_towards
from agentrl.errors import ConfigError, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from agentrl.engines.vllm_control import Control
    from agentrl.records import Version

NCCL_FLAG = """--weight-transfer-config '{"backend": "nccl"}'"""


class Communicator(Protocol):
    """The learner's end of a group."""

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send a tensor to all workers of the group."""
        ...

    def finish(self) -> None:
        """Wait until everything that was broadcast has left."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class NcclTransport:
    """Broadcasts each version to every server.

    Args:
        dtype: type of the servers' weights; None sends the learner's own.
        join: opens the learner's end of a group: address, port, size. The default needs vLLM in the learner's environment.
    """

    swaps = True

    def __init__(self, *, dtype: str | None = None, join: Callable[[str, int, int], Communicator] | None = None) -> None:
        self._dtype = dtype
        self._join = join or join_with_vllm
        self._groups: dict[str, Communicator] = {}
        self._lock = threading.Lock()
        self._weights: list[tuple[str, torch.Tensor]] = []

    def check(self, server: Control) -> None:
        """Form the group with a server; raises `ConfigError` where that fails."""
        try:
            self._group(server)
        except (RouteFailed, OSError) as error:
            raise ConfigError(
                f"{server.url} forms no NCCL group with the learner: {error}. Start it with {NCCL_FLAG} on a GPU other than the learner's, "
                "or set engine.transport=filesystem"
            ) from error

    def collect(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> Shipment:
        """Hold references to the learner's tensors; they must not change until every server has them."""
        import torch as torch_module

        from agentrl.checksum import converted, weights_checksum

        kind: torch.dtype | None = None if self._dtype is None else getattr(torch_module, self._dtype)
        self._weights = [(name, converted(tensor, kind).contiguous()) for name, tensor in weights]
        try:
            checksum = weights_checksum(self._weights)
        except ValueError as error:
            raise PublishError(str(error)) from None
        num_bytes = sum(tensor.numel() * tensor.element_size() for _, tensor in self._weights)
        names = tuple(name for name, _ in self._weights)
        return Shipment(version=version, model=BASE_MODEL, names=names, num_bytes=num_bytes, checksum=checksum)

    def deliver(self, server: Control, shipment: Shipment) -> None:
        """Broadcast while the server receives. A server that fails half-way loses its group, and gets a new one next time."""
        group = self._group(server)
        info = {
            "names": [name for name, _ in self._weights],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in self._weights],
            "shapes": [list(tensor.shape) for _, tensor in self._weights],
        }
        receiving = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nccl-update")
        try:
            answer = receiving.submit(server.command, "/update_weights", {"update_info": info})
            if answer.done():  # refused before any worker entered the group: nobody would receive
                answer.result()
            for _, tensor in self._weights:
                group.broadcast(tensor)
            group.finish()
            answer.result()
        except BaseException as error:
            self._drop(server)
            if isinstance(error, RuntimeError):  # torch's and NCCL's own
                raise RouteFailed(f"{server.url} was not sent the weights: {error}") from error
            raise
        finally:
            receiving.shutdown(wait=False)  # a worker that is stuck in the group never answers

    def confirm(self, server: Control, shipment: Shipment) -> None:
        """Ask for the version; vLLM's backend keeps no checksum, so the publisher's probe is what compares the weights themselves."""
        got = server.read("/weight_info", "weight_version")
        if got != version_text(shipment.version):
            raise RouteFailed(f"{server.url} says that it has version {got!r}; sent was {version_text(shipment.version)!r}")

    def tidy(self, servers: Sequence[Control]) -> None:
        """Nothing is kept but references to the learner's own tensors."""

    def close(self) -> None:
        """Leave every group."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()
        self._weights = []

    def _group(self, server: Control) -> Communicator:
        with self._lock:
            known = self._groups.get(server.url)
        if known is not None:
            return known
        with contextlib.suppress(RouteFailed):  # a former trainer's group, where there was one
            server.post("/shutdown_weight_transfer_engine")
        address, size = address_towards(server.url), 1 + int(server.read("/get_world_size", "world_size"))
        with socket.socket() as free:
            free.bind((address, 0))
            port = int(free.getsockname()[1])
        info: dict[str, Any] = {"master_address": address, "master_port": port, "rank_offset": 1, "world_size": size, "packed": False}
        asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nccl-join")
        try:
            answer = asking.submit(server.command, "/init_weight_transfer_engine", {"init_info": info})
            group = self._join(address, port, size)
            answer.result()
        finally:
            asking.shutdown(wait=False)
        with self._lock:
            self._groups[server.url] = group
        return group

    def _drop(self, server: Control) -> None:
        with self._lock:
            group = self._groups.pop(server.url, None)
        if group is not None:
            group.close()


def join_with_vllm(address: str, port: int, size: int) -> Communicator:
    """The learner's end of a group, by vLLM's own code; raises `ConfigError` where the learner's environment has none."""
    try:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"engine.transport=nccl needs vLLM in the learner's environment too ({error}); install `agentrl[vllm]` there, or set "
            "engine.transport=filesystem"
        ) from error
    return _VllmGroup(trainer_init({"master_address": address, "master_port": port, "world_size": size}))


class _VllmGroup:
    """vLLM's communicator, on a CUDA stream of its own so that groups do not wait for each other."""

    def __init__(self, communicator: Any) -> None:
        import torch

        self._communicator = communicator
        self._stream = torch.cuda.Stream()

    def broadcast(self, tensor: torch.Tensor) -> None:
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())
        self._communicator.broadcast(tensor, src=0, stream=self._stream)

    def finish(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        self._communicator.destroy()
