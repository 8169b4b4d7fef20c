"""Adapters loaded beside the model, each version under a name of its own: nothing stands still, and requests in flight keep theirs."""

from __future__ import annotations

import json
import secrets
import shutil
from typing import TYPE_CHECKING, Any

from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_control import RouteFailed
from agentrl.engines.vllm_transports.base import BASE_MODEL, Shipment
from agentrl.engines.vllm_transports.store import SharedFolder
from agentrl.errors import ConfigError, PublishError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from agentrl.engines.vllm_control import Control
    from agentrl.records import Version

FILES_KEPT_LONGER = 8
"""Versions whose files stay after their names were unloaded. A request that began under such a name may be preempted, and the server
reads its adapter again when it goes on."""
_START = "start the server with --enable-lora --max-lora-rank {rank} and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, as `agentrl serve --lora` does"


class LoraTransport:
    """Saves each adapter in peft's format and has the servers load it.

    Args:
        config: peft's adapter configuration, as JSON values.
        trial: the adapter as training starts, loaded once by `check` to see that each server can serve it.
        parent: the shared folder; by default /dev/shm.
        max_loras: adapters that a server computes with at once; the newest `max_loras - 1` old names stay loaded beside the new one.
    """

    swaps = False

    def __init__(
        self, config: Mapping[str, Any], trial: Sequence[tuple[str, torch.Tensor]], *, parent: str | None = None, max_loras: int = 2
    ) -> None:
        self.folder = SharedFolder(parent)
        self._config = dict(config)
        self._trial = trial
        self._old_names = max(0, max_loras - 1)
        self._published: list[Shipment] = []
        self._unloaded: set[str] = set()

    def check(self, server: Control) -> None:
        """Load the first adapter and unload it again; raises `ConfigError` with the cure where the server refuses."""
        name = f"{BASE_MODEL}-trial-{secrets.token_hex(4)}"
        folder = self.folder.path / name
        self._save(folder, self._trial)
        try:
            server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            server.post("/v1/unload_lora_adapter", {"lora_name": name})
        except RouteFailed as error:
            raise ConfigError(f"{server.url} does not serve the adapter of learner.lora: {error}. {self._cure(error)}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _cure(self, error: RouteFailed) -> str:
        text, rank = str(error).lower(), self._config.get("r")
        if error.status in (404, 405):
            return "Its routes for adapters are closed: " + _START.format(rank=rank)
        if "rank" in text:
            return f"Lower learner.lora.rank, now {rank}, or {_START.format(rank=rank)}"
        if "no adapter found" in text or "not found" in text or "no such file" in text:
            return f"It does not see {self.folder.path.parent}: set engine.transfer_dir to a folder that both can reach under the same path"
        if "module" in text:
            modules = self._config.get("target_modules")
            return f"Choose other learner.lora.target_modules, now {modules}: vLLM serves adapters on linear layers alone"
        return "If it has no LoRA at all, " + _START.format(rank=rank)

    def collect(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> Shipment:
        """Save an adapter in a folder of its own."""
        name = f"{BASE_MODEL}@{version_text(version)}"
        folder = self.folder.path / name
        names, num_bytes, checksum = self._save(folder, weights)
        shipment = Shipment(version=version, model=name, names=names, num_bytes=num_bytes, checksum=checksum, paths=(folder,))
        self._published = [*(one for one in self._published if one.model != name), shipment]
        return shipment

    def _save(self, folder: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> tuple[tuple[str, ...], int, str]:
        from safetensors.torch import save_file

        from agentrl.checksum import Checksum

        tensors: dict[str, torch.Tensor] = {}
        checksum = Checksum()
        for name, tensor in weights:
            tensors[name] = tensor.detach().cpu().contiguous()
            try:
                checksum.add(name, tensors[name])
            except ValueError as error:
                raise PublishError(str(error)) from None
        if not tensors:
            raise PublishError("no tensors of an adapter were given; set learner.lora, or another engine.transport")
        try:
            folder.mkdir()
            save_file(tensors, folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps(self._config))
        except OSError as error:
            raise PublishError(f"cannot write the adapter to {folder}: {error}") from error
        return tuple(tensors), sum(one.numel() * one.element_size() for one in tensors.values()), checksum.hexdigest()

    def deliver(self, server: Control, shipment: Shipment) -> None:
        """Load the adapter, unless the server has it already."""
        if self._holds(server, shipment):
            return
        server.post("/v1/load_lora_adapter", {"lora_name": shipment.model, "lora_path": str(shipment.paths[0])})

    def confirm(self, server: Control, shipment: Shipment) -> None:
        """Ask the server which adapters it serves, and from where."""
        if not self._holds(server, shipment):
            raise RouteFailed(f"{server.url} was given {shipment.model} from {shipment.paths[0]} and does not list it")

    def _holds(self, server: Control, shipment: Shipment) -> bool:
        models = [one for one in server.read("/v1/models", "data") or [] if isinstance(one, dict)]
        return any(one.get("id") == shipment.model and one.get("root") == str(shipment.paths[0]) for one in models)

    def tidy(self, servers: Sequence[Control]) -> None:
        """Unload all but the newest names; the files go some versions later."""
        old = self._published[:-1]
        for shipment in old[: max(0, len(old) - self._old_names)]:
            if shipment.model in self._unloaded:
                continue
            self._unloaded.add(shipment.model)
            for server in servers:
                try:
                    server.post("/v1/unload_lora_adapter", {"lora_name": shipment.model})
                except RouteFailed:  # it never had it, or it is gone: nothing depends on this
                    continue
        kept = 1 + self._old_names + FILES_KEPT_LONGER
        for shipment in self._published[:-kept]:
            shutil.rmtree(shipment.paths[0], ignore_errors=True)
        self._published = self._published[-kept:]

    def close(self) -> None:
        """Remove everything that was written."""
        self.folder.close()
