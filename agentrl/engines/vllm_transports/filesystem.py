"""Weights through files on a disk that learner and servers share, or in the memory of one machine."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_control import RouteFailed
from agentrl.engines.vllm_transports.base import BASE_MODEL, Shipment
from agentrl.engines.vllm_transports.store import IN_MEMORY, Placed, SharedFolder, write_weights
from agentrl.errors import ConfigError, PublishError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import torch

    from agentrl.engines.vllm_control import Control
    from agentrl.records import Version

BACKEND_FLAG = (
    """--weight-transfer-config '{"backend": "agentrl"}' --worker-extension-cls agentrl.servers.vllm_plugin.worker.WorkerExtension """
    "(`agentrl serve` does), in an environment where agentrl is installed"
)


class FilesystemTransport:
    """Writes each version once; the servers read the files.

    Args:
        parent: the shared folder; by default /dev/shm.
        dtype: type of the servers' weights, such as `bfloat16`; None sends the learner's own.
    """

    swaps = True

    def __init__(self, parent: str | None = None, *, dtype: str | None = None) -> None:
        self.folder = SharedFolder(parent)
        self._dtype = dtype
        self._placed: tuple[Placed, ...] = ()

    def check(self, server: Control) -> None:
        """Raise `ConfigError` where the server does not read what is written here."""
        check_shared(server, self.folder)

    def collect(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> Shipment:
        """Write a version over the one before, or after it was removed, so that there is never room needed for two."""
        folder = self.folder.path / f"{version.lineage}.{version.step}"
        self._make_way(folder)
        written = write_weights(folder, weights, self._dtype)
        self._placed = placed = written.placed
        if not placed:
            raise PublishError(f"no weights were given for version {version.step}")
        return Shipment(
            version=version,
            model=BASE_MODEL,
            names=tuple(one.name for one in placed),
            num_bytes=sum(one.num_bytes for one in placed),
            checksum=written.checksum,
            paths=tuple(dict.fromkeys(one.path for one in placed)),
        )

    @property
    def placed(self) -> tuple[Placed, ...]:
        """Where the tensors of the newest version lie."""
        return self._placed

    def deliver(self, server: Control, shipment: Shipment) -> None:
        """Have the server load the files."""
        info = {"kind": "file", "version": version_text(shipment.version), "paths": [str(path) for path in shipment.paths]}
        server.command("/update_weights", {"update_info": info})

    def confirm(self, server: Control, shipment: Shipment) -> None:
        """Compare the checksum of what each worker loaded with that of what was written."""
        confirm_received(server, shipment)

    def tidy(self, servers: Sequence[Control]) -> None:
        """Nothing: the newest version stays for servers that come back."""

    def close(self) -> None:
        """Remove everything that was written."""
        self.folder.close()

    def _make_way(self, folder: Path) -> None:
        """Give the older version's files to the new one where they are memory, whose pages then need not be made again.

        Whoever still reads them reads a mixture, and finds so by the checksum. Other machines must not keep what they have read before,
        so on a disk, which may be shared, every version has files of its own.
        """
        older = [entry for entry in self.folder.path.iterdir() if entry.is_dir()]
        if len(older) == 1 and older[0] != folder and folder.is_relative_to(IN_MEMORY):
            older[0].rename(folder)
            return
        for entry in older:
            shutil.rmtree(entry, ignore_errors=True)


def check_shared(server: Control, folder: SharedFolder) -> None:
    """Raise `ConfigError` unless every worker of a server reads this very folder."""
    try:
        answers = server.rpc("agentrl_reads", [str(folder.marker)])
    except RouteFailed as error:
        raise ConfigError(f"{server.url} cannot be asked to read files: {error}. Start it with {BACKEND_FLAG}") from error
    wrong = [
        str(answer.get("error") or f"it holds {answer.get('text')!r}") for answer in answers if answer.get("text") != folder.marker.name
    ]
    if wrong:
        raise ConfigError(
            f"{server.url} does not see the folder {folder.path.parent} that the learner writes weights to ({wrong[0]}). Set "
            "engine.transfer_dir to a folder that both can reach under the same path, or engine.transport=stream, which needs none"
        )


def confirm_received(server: Control, shipment: Shipment) -> None:
    """Raise `RouteFailed` unless every worker has loaded exactly the bytes of a shipment and the server stamps its version."""
    sent = {"version": version_text(shipment.version), "names": len(shipment.names), "checksum": shipment.checksum}
    for answer in server.rpc("agentrl_received"):
        got = {key: answer.get(key) for key in sent}
        if got != sent:
            raise RouteFailed(f"{server.url} loaded other weights than were sent: {got} instead of {sent}")
    stamped = server.read("/weight_info", "weight_version")
    if stamped != sent["version"]:
        raise RouteFailed(f"{server.url} stamps tokens with version {stamped!r} instead of {sent['version']!r}")
