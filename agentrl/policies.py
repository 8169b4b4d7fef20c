"""The frozen policies of a run: opponents, user simulators and judges that environments ask for turns, and that nothing trains.

Each has an engine of its own: an embedded one, which may be given the policy's weights now and then (self-play against an earlier self),
or vLLM servers of somebody else's. Every snapshot that an opponent plays with is a folder of the run, by name and step, so that a resume
finds it again and others can be rated against it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from agentrl.dispatch import PolicyPlace
from agentrl.errors import AgentRLError, SamplerUnavailable
from agentrl.records import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import torch

    from agentrl.config import FrozenPolicyConfig, RunConfig
    from agentrl.engines.embedded_process import EngineProcess
    from agentrl.engines.embedded_publisher import EmbeddedPublisher
    from agentrl.processes import Child

FOLDER = "policies"
_STEP = "step-"


def updates(config: RunConfig, step: int) -> list[str]:
    """The policies that take over the weights of this optimizer step."""
    return [name for name, one in config.policies.items() if one.update_every and step and step % one.update_every == 0]


def newest_snapshot(folder: Path, name: str, step: int) -> tuple[Path, int] | None:
    """The latest weights that a policy played with at a step: folder and step; None where it played with those that it began with."""
    found = [int(path.name.removeprefix(_STEP)) for path in (folder / FOLDER / name).glob(f"{_STEP}*") if path.is_dir()]
    at = max((number for number in found if number <= step), default=None)
    return None if at is None else (snapshot_folder(folder, name, at), at)


def snapshot_folder(folder: Path, name: str, step: int) -> Path:
    """Where the weights of a policy lie from a step on."""
    return folder / FOLDER / name / f"{_STEP}{step:06d}"


class FrozenPolicies:
    """Starts the engines, says where they are, and gives them new weights.

    Args:
        config: of the run.
        scratch: a private folder for sockets.
        logs: folder for what the engines write.
        model_dir: of the run's own model, as it began.
        on_failure: told when an engine has ended by itself.
    """

    def __init__(self, config: RunConfig, *, scratch: Path, logs: Path, model_dir: str, on_failure: Callable[[AgentRLError], None]) -> None:
        self._config = config
        self._scratch = scratch
        self._logs = logs
        self._model_dir = model_dir
        self._on_failure = on_failure
        self._engines: dict[str, EngineProcess] = {}
        self._publishers: dict[str, EmbeddedPublisher] = {}
        self._tokenizers: dict[str, str] = {}

    def start(self, resolve: Callable[[str], str], folder: Path | None = None, version: Version | None = None) -> None:
        """Start the embedded ones; they load while the caller goes on.

        Args:
            resolve: the folder or Hub name behind a `model`.
            folder: of the run, where one is resumed.
            version: that the run goes on from.
        """
        for name, policy in self._config.policies.items():
            self._tokenizers[name] = resolve(policy.model) if policy.model is not None else self._model_dir
            if not policy.servers:
                self._start(name, policy, folder, version)

    def _start(self, name: str, policy: FrozenPolicyConfig, folder: Path | None, version: Version | None) -> None:
        from agentrl.config_engine import EngineConfig
        from agentrl.engines.embedded_process import start_engine

        model, at = self._tokenizers[name], Version()
        if folder is not None and version is not None and policy.update_every and (known := newest_snapshot(folder, name, version.step)):
            model, at = str(known[0]), Version(lineage=version.lineage, step=known[1])
        engine = self._config.engine
        own = EngineConfig(device=engine.device, dtype=engine.dtype, context_length=engine.context_length, timeout_s=engine.timeout_s)
        process = self._engines[name] = start_engine(
            model,
            own,
            version=at,
            threads=1,
            socket_path=self._scratch / f"policy-{len(self._engines)}.sock",
            log=self._logs / f"policy-{name}.log",
        )
        process.child.watch(self._ended)

    def _ended(self, child: Child) -> None:
        self._on_failure(SamplerUnavailable(child.describe_end()))

    def places(self) -> tuple[PolicyPlace, ...]:
        """Where rollout processes find them."""
        return tuple(
            PolicyPlace(
                name=name,
                tokenizer=self._tokenizers[name],
                temperature=policy.temperature,
                socket=str(self._engines[name].socket_path) if name in self._engines else "",
                servers=tuple(policy.servers),
            )
            for name, policy in self._config.policies.items()
        )

    def publish(self, name: str, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> None:
        """Give a policy new weights between two tokens. Raises `PublishError`."""
        from agentrl.engines.embedded_publisher import EmbeddedPublisher

        if name not in self._publishers:
            partial = self._config.learner.lora is not None and self._config.learner.lora.quantize is None
            timeout_s = self._config.engine.timeout_s
            self._publishers[name] = EmbeddedPublisher.connect(self._engines[name], timeout_s=timeout_s, partial=partial)
        self._publishers[name].publish(weights, version)

    def close(self) -> None:
        """End the engines."""
        for publisher in self._publishers.values():
            publisher.close()
        for engine in self._engines.values():
            engine.stop()


def prune_snapshots(config: RunConfig, folder: Path, steps: Iterable[int]) -> None:
    """Remove snapshots that no checkpoint needs: kept are those in use at each of these steps, and all of a policy with `keep: all`."""
    wanted = list(steps)
    for name, policy in config.policies.items():
        if not policy.update_every or policy.keep == "all":
            continue
        kept = {found[0] for step in wanted if (found := newest_snapshot(folder, name, step))}
        for path in (folder / FOLDER / name).glob(f"{_STEP}*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
