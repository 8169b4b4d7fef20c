"""The weight-transfer backend `agentrl`: whole models over files, shared memory or TCP, on CPUs and GPUs.

It is driven by the routes that vLLM's NCCL backend is driven by. Source of the life cycle: vLLM 0.32, `distributed/weight_transfer`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from agentrl.servers.vllm_plugin import layers, sources
from agentrl.transfer_format import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

    Weights = Iterator[tuple[str, torch.Tensor]]

SHOWN_NAMES = 8
"""Names in an error; a whole model has hundreds."""


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is in another environment than the type checker
    """Body of `/init_weight_transfer_engine`: for TCP where the learner listens, otherwise nothing."""

    kind: str = ""
    host: str = ""
    port: int = 0
    token: str = ""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]  # as above
    """Body of `/update_weights`; which fields count depends on the kind."""

    kind: str
    version: str = ""
    """Of the weights, for `agentrl_received`."""
    paths: list[str] = field(default_factory=list)
    path: str = ""
    layout: list[list[Any]] = field(default_factory=list)
    host: str = ""
    port: int = 0
    token: str = ""


class TransferEngine(WeightTransferEngine):  # type: ignore[misc]  # as above
    """One worker's end of the transfer."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        self._init = InitInfo()
        self._receipt = Receipt()
        self._version = ""
        self._expected: frozenset[str] = frozenset()
        self._loaded: set[str] = set()
        self._tells_names = True
        self._taken: set[str] = set()
        self._finished: dict[str, Any] = {"version": "", "checksum": "", "names": 0}

    def received(self) -> dict[str, Any]:
        """Version, checksum and number of names of the last finished update, from the bytes that this worker was sent."""
        return self._finished

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Remember where the learner listens."""
        self._init = init_info

    def start_weight_update(self) -> None:
        """Make the model ready for a whole set of weights."""
        self._receipt, self._version, self._loaded = Receipt(), "", set()
        # with adapters the layers are wrapped, and the model still names its weights as a checkpoint does
        self._expected = frozenset(name.replace(".base_layer.", ".") for name, _ in self.model.named_parameters())
        layers.begin(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive some of the weights; after a failure the update is abandoned."""
        try:
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":  # where there is no accelerator, the base class's synchronization raises
                torch.accelerator.synchronize(self.device)
        except BaseException:
            layers.abandon(self.model, self.model_config)
            raise

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Hand the tensors of one message to the model, and hash them meanwhile."""
        self._version = update_info.version or self._version
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="receipt") as hashing:
            pending = []

            def noted() -> Weights:
                for name, tensor in self._source(update_info):
                    pending.append(hashing.submit(self._receipt.add, name, tensor))
                    yield name, tensor

            self._load(noted())
            for one in pending:
                one.result()
        layers.keep_pending(self.model)

    def finish_weight_update(self) -> None:
        """Put the new weights in place, unless some are missing."""
        if missing := self._missing():
            layers.abandon(self.model, self.model_config)
            raise ValueError(
                f"the update lacks weights that the model has: {_some(missing)}; every update must bring the whole model, "
                "as state_dict() of the Hugging Face model names it"
            )
        layers.finish(self.model, self.model_config)
        self._finished = {"version": self._version, "checksum": self._receipt.hexdigest(), "names": len(self._receipt)}

    def shutdown(self) -> None:
        """Hold nothing: each update opens and closes what it needs."""

    def _source(self, info: UpdateInfo) -> Weights:
        if info.kind == "file":
            return sources.from_files(info.paths)
        if info.kind == "shm":
            return sources.from_shared_memory(info.path, info.layout)
        if info.kind == "tcp":
            parallel = self.parallel_config
            index, size = parallel.data_parallel_index, parallel.world_size
            return sources.from_learner(
                info.host or self._init.host,
                info.port or self._init.port,
                info.token or self._init.token,
                index * size + parallel.rank,
                parallel.data_parallel_size * size,
            )
        raise ValueError(f"update_info has the kind {info.kind!r}; it must be file, shm or tcp")

    def _load(self, weights: Weights) -> None:
        """Load, one by one, names that were never loaded before, to see that the model takes each; known ones together, which is faster."""
        unknown: list[tuple[str, torch.Tensor]] = []

        def known() -> Weights:
            for name, tensor in weights:
                if name not in self._taken:
                    unknown.append((name, tensor))
                    return
                yield name, tensor

        with layers.without_draft_check():
            while True:
                self._note(self.model.load_weights(known()))
                if not unknown:
                    return
                name, tensor = unknown.pop()
                if not self._note(self.model.load_weights([(name, tensor)])):
                    raise ValueError(f"the model that is served has no weight {name!r}; the learner must hold the same model")
                self._taken.add(name)

    def _note(self, loaded: set[str] | None) -> bool:
        """Keep the parameters that a call filled; whether there was one, as far as the model tells."""
        if loaded is None:
            self._tells_names = False
            return True
        self._loaded |= loaded
        # a stage of a pipeline rightly takes only its own layers
        return bool(loaded) or self.parallel_config.pipeline_parallel_size > 1

    def _missing(self) -> frozenset[str]:
        if not self._tells_names or self.model_config.quantization is not None:
            return frozenset()  # a quantized model has parameters that no checkpoint brings
        return (self._expected - self._loaded) | layers.half_loaded(self.model)


def _some(names: frozenset[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - SHOWN_NAMES
    return ", ".join(ordered[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
