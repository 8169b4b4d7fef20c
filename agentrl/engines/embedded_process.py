"""Starting the embedded engine's process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.processes import Child, start_child
from agentrl.scratch import ScratchFolder

if TYPE_CHECKING:
    from agentrl.config_engine import EngineConfig
    from agentrl.records import Version

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc keeps freed activations instead of giving them back to the kernel each step: 10% more tokens a second (measured, 0.8 M model)."""


@dataclass(slots=True, kw_only=True)
class EngineProcess:
    """A running engine. It also ends by itself when this process does."""

    child: Child
    socket_path: Path
    _lifeline: int
    _folder: ScratchFolder | None
    """Made for the socket, and removed with it."""

    def ended(self) -> bool:
        """Whether the process has ended; one that has just closed its sockets is given a moment."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.process.wait(5.0)  # of a busy machine
        return self.child.process.poll() is not None

    def stop(self) -> None:
        """End the engine; may be called again."""
        self.child.stop()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self.socket_path.unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.close()


def start_engine(
    model_dir: str,
    config: EngineConfig,
    *,
    version: Version,
    threads: int,
    log: Path,
    socket_path: Path | None = None,
    reference_dir: str | None = None,
) -> EngineProcess:
    """Start an engine process; it loads while the caller goes on, and clients may connect at once.

    Args:
        model_dir: a folder or Hub name that transformers loads.
        config: the engine's section of the run file.
        version: of the weights in `model_dir`.
        threads: CPU threads.
        log: its error output is appended here.
        socket_path: where it listens; by default in a new private folder. At most some 100 characters, a limit of Unix sockets.
        reference_dir: a folder or Hub name of the same vocabulary, held beside the policy and never changed by a publish; for requests
            whose contract has a `reference_share`, which are refused without it.
    """
    folder = None
    if socket_path is None:
        folder = ScratchFolder("agentrl-engine-")
        socket_path = folder.path / "engine.sock"
    watched, lifeline = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(socket_path))
            listener.listen(128)
            child = start_child(
                "the embedded engine",
                "agentrl.engines.embedded_server",
                [
                    *("--model", model_dir, "--config", config.model_dump_json(), "--threads", str(threads)),
                    *("--version", str(version.lineage), str(version.step)),
                    *(("--reference", reference_dir) if reference_dir is not None else ()),
                    *("--listen-fd", str(listener.fileno()), "--lifeline-fd", str(watched)),
                ],
                log=log,
                pass_fds=[listener.fileno(), watched],
                environment={"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **_MALLOC},
            )
    except BaseException:
        os.close(lifeline)
        if folder is not None:
            folder.close()
        raise
    finally:
        os.close(watched)
    return EngineProcess(child=child, socket_path=socket_path, _lifeline=lifeline, _folder=folder)
