"""What a training run and an evaluation share: an engine, rollout processes, the environment's tasks, and their certain end."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from agentrl import objectives
from agentrl.cores import cpu_share
from agentrl.dispatch import Setup, Teaching
from agentrl.errors import AgentRLError, ConfigError, PublishError, SamplerUnavailable
from agentrl.fleet import Fleet
from agentrl.records import Version
from agentrl.rollout.rows import RemoteRows
from agentrl.scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from agentrl.buffer import Dispatch
    from agentrl.config import RunConfig
    from agentrl.engines.embedded import EmbeddedPublisher, EngineProcess
    from agentrl.engines.vllm_list import ServerList
    from agentrl.engines.vllm_probe import Probe
    from agentrl.engines.vllm_servers import VllmServers
    from agentrl.engines.vllm_setup import Adapter
    from agentrl.environment import Split
    from agentrl.policies import FrozenPolicies
    from agentrl.processes import Child
    from agentrl.records import Group, SamplingContract


class Session:
    """Starts processes on demand and ends them all on exit; a context manager.

    Raises `ConfigError` for a model without tokenizer or an environment that does not load.
    """

    def __init__(self, config: RunConfig, logs: Path) -> None:
        self.config = config
        self.environment = environment_spec(config)
        self.model_dir = resolve_model(config.model)
        self.published: tuple[str, str] | None = None
        """Fingerprint of the learner's parameters and checksum of the engine's, at the last publish."""
        self.on_failure: Callable[[AgentRLError], None] = lambda error: None
        self._logs = logs
        self._temporary = ScratchFolder()
        self._engine: EngineProcess | None = None
        self._publisher: EmbeddedPublisher | None = None
        self.adapter: Adapter | None = None
        """The learner's, to be set before `publisher` is asked for where the transport of weights is `lora`."""
        self.say: Callable[[str], None] = lambda line: None
        """Told what happens to vLLM servers, a line each."""
        self._vllm: VllmServers | None = None
        self._vllm_connected = False
        self._samples_reference = False
        self._list: ServerList | None = None
        self.policies: FrozenPolicies | None = None
        """The engines of the frozen policies, once they are started."""
        self._fleet: Fleet | None = None
        self._rows: list[RemoteRows] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.ExitStack() as ends:  # one that fails, or is interrupted, does not keep the others from being called
            ends.callback(self._temporary.close)
            for rows in self._rows:
                ends.callback(rows.close)
            if self._engine is not None:
                ends.callback(self._engine.stop)
            if self.policies is not None:
                ends.callback(self.policies.close)
            if self._publisher is not None:
                ends.callback(self._publisher.close)
            if self._vllm is not None:
                ends.callback(self._vllm.close)
            if self._list is not None:
                ends.callback(self._list.close)
            ends.callback(self.stop_fleet)

    def start_engine(self, model: str, version: Version | None = None, *, reference: bool = False) -> None:
        """Start the engine on a model; it loads while the caller goes on.

        Args:
            model: folder or Hub name.
            version: of its weights.
            reference: whether it is also to sample from the run's own `model`, as it was before training.
        """
        self._samples_reference = reference
        if self.config.engine.kind == "vllm":
            self._start_vllm(resolve_model(model))
            return
        from agentrl.engines.embedded import start_engine

        self._engine = start_engine(
            resolve_model(model),
            self.config.engine,
            version=version or Version(),
            threads=cpu_share(self.config, "engine"),
            socket_path=self._temporary.path / "engine.sock",
            log=self._logs / "engine.log",
            reference_dir=self.model_dir if reference else None,
        )
        self._engine.child.watch(self._engine_ended)

    def start_policies(self, folder: Path | None = None, version: Version | None = None) -> None:
        """Start the engines of the frozen policies; with the weights that they had in a run folder at a version, where one is resumed."""
        from agentrl.policies import FrozenPolicies

        self.policies = FrozenPolicies(
            self.config,
            scratch=self._temporary.path,
            logs=self._logs,
            model_dir=self.model_dir,
            on_failure=lambda error: self.on_failure(error),
        )
        self.policies.start(resolve_model, folder, version)

    def _start_vllm(self, model: str) -> None:
        from agentrl.engines.vllm_setup import make_servers

        threads = cpu_share(self.config, "engine")
        self._vllm = make_servers(self.config, model, logs=self._logs, threads=threads, say=lambda line: self.say(line))
        self._vllm.start()

    def _connect_vllm(self, servers: VllmServers) -> None:
        from agentrl.engines.vllm_list import FILE, ServerList
        from agentrl.engines.vllm_setup import expectations, make_publisher

        expected = expectations(self.config, self.model_dir, owner=str(self._logs.resolve().parent), reference=self._samples_reference)
        servers.on_failure = lambda error: self.on_failure(error)
        servers.connect(make_publisher(self.config, servers, self.adapter), expected)
        self._list = ServerList(self._logs.parent / FILE, servers, say=lambda line: self.say(line))

    def _engine_ended(self, child: Child) -> None:
        self.on_failure(SamplerUnavailable(child.describe_end()))

    @property
    def publisher(self) -> EmbeddedPublisher | VllmServers:
        """The engine as the learner sees it; waits until it has loaded."""
        if self._vllm is not None:
            if not self._vllm_connected:
                self._connect_vllm(self._vllm)
                self._vllm_connected = True
            return self._vllm
        if self._publisher is None:
            from agentrl.engines.embedded import EmbeddedPublisher

            assert self._engine is not None
            partial = self.config.learner.lora is not None and self.config.learner.lora.quantize is None
            self._publisher = EmbeddedPublisher.connect(self._engine, timeout_s=self.config.engine.timeout_s, partial=partial)
        return self._publisher

    def probe(self, ids: Sequence[int], logprobs: Sequence[float]) -> Probe:
        """The learner's log-probs of a text, as closely as the engine's are to agree."""
        from agentrl.engines.vllm_probe import EXACT, HALF, Probe

        return Probe(ids=tuple(ids), logprobs=tuple(logprobs), tolerance=EXACT if self.dtype == "float32" else HALF)

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version, probe: Probe | None = None) -> str:
        """Replace the engine's weights; returns the checksum that it read back. Raises `PublishError`."""
        publisher = self.publisher
        if self._vllm is not None:
            return self._vllm.publish(weights, version, probe)
        return publisher.publish(weights, version)

    @property
    def joins_servers(self) -> bool:
        """Whether the engine runs already, with whatever weights it was left with: then it needs the learner's before it samples."""
        return self._vllm is not None

    @property
    def dtype(self) -> str:
        """Type of the engine's weights."""
        return self.publisher.dtype

    @property
    def loop_lag_s(self) -> float:
        """Latest lag of a rollout process's event loop."""
        return self._fleet.loop_lag_s if self._fleet else 0.0

    def rows(self, split: Split) -> RemoteRows:
        """A split of the environment; the environment's code runs in a process of its own, under a deadline."""
        rows = RemoteRows(self.environment, split, imports=self.config.imports, log=self._logs / f"tasks-{split}.log")
        self._rows.append(rows)
        return rows

    def start_fleet(
        self,
        *,
        contract: SamplingContract,
        next_group: Callable[[], Dispatch | None],
        on_played: Callable[[Group], None],
        on_lost: Callable[[int], None],
        group_size: int | None = None,
        seed: int | None = None,
        rival: SamplingContract | None = None,
        judged: bool = False,
        teaching: Teaching | None = None,
    ) -> Fleet:
        """Start the rollout processes; groups flow as soon as they are ready. `rival` and `judged` go out with each: see `Play`.

        `teaching` is what they do for a teacher with each finished group.
        """
        setup = Setup(
            config=self.config.model_dump(mode="json"),
            environment=self.environment,
            tokenizer=self.model_dir,
            engine_socket=str(self._engine.socket_path) if self._engine is not None else "",
            log_folder=str(self._logs),
            policies=self.policies.places() if self.policies is not None else (),
            teaching=teaching,
        )
        self._fleet = Fleet(
            setup,
            size=self.config.rollout.processes,
            logs=self._logs,
            contract=contract,
            seed=self.config.seed if seed is None else seed,
            group_size=group_size or self.config.group_size,
            rival=rival,
            judged=judged,
            next_group=next_group,
            on_played=on_played,
            on_lost=on_lost,
            on_failure=self._fleet_failed,
            serving=self._vllm.serving if self._vllm is not None else None,
            on_suspect=self._vllm.suspect if self._vllm is not None else lambda url, why: None,
        )
        if self._vllm is not None:
            self._vllm.on_change = self._fleet.use
        self._fleet.start()
        return self._fleet

    def _fleet_failed(self, error: AgentRLError) -> None:
        self.on_failure(self.explained(error))

    def explained(self, error: AgentRLError) -> AgentRLError:
        """The error, or the end of the engine where that is behind it."""
        engine = self._engine
        if isinstance(error, SamplerUnavailable) and self._vllm is not None and (said := self._vllm.describe_end()):
            return error if said in str(error) else SamplerUnavailable(f"{error}; {said}")
        if isinstance(error, SamplerUnavailable | PublishError) and engine is not None and engine.ended():
            return SamplerUnavailable(engine.child.describe_end())
        return error

    def stop_fleet(self) -> None:
        """End the rollout processes and whatever they started."""
        if self._fleet is not None:
            self._fleet.stop()
            self._fleet = None


def environment_spec(config: RunConfig) -> str:
    """The spec that every process imports: `env`, or the built-in environment over `dataset`, `rewards` and `judge`."""
    if config.env is not None:
        return config.env
    if config.envs:
        return "mixture?" + urlencode({"parts": json.dumps([part.model_dump() for part in config.envs])})
    assert config.dataset is not None, "the run file's check lets no run through without tasks"
    plain = not any("," in name or "?" in name for name in config.rewards)
    arguments = {
        "path": config.dataset,
        "rewards": ",".join(config.rewards) if plain else json.dumps(config.rewards, ensure_ascii=False),
        "judge": config.judge or "",
        "weights": ",".join(map(repr, config.reward_weights)),
        "unscored": "" if config.rewards or config.judge or _reads_rewards(config) else "true",
    }
    return "dataset?" + urlencode({name: value for name, value in arguments.items() if value}, safe="/:,")


def _reads_rewards(config: RunConfig) -> bool:
    objective = objectives.get(config.objective["name"])
    return objective.needs(objectives.validate(config.objective)).rewards


def resolve_model(model: str) -> str:
    """The folder or Hub name to load; `quickstart` is the model that ships with agentrl.

    Raises `ConfigError` for a folder without a model or a tokenizer.
    """
    if model == "quickstart":
        from agentrl.quickstart import model_path

        return model_path()
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(
                f"model {model!r} is a folder without config.json; give a folder that transformers' save_pretrained wrote, or a Hub name"
            )
        if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")):
            raise ConfigError(f"model {model!r} has no tokenizer files; save one beside it with tokenizer.save_pretrained({model!r})")
    elif path.exists():
        raise ConfigError(f"model {model!r} is a file; give the folder that transformers' save_pretrained wrote, or a Hub name")
    elif model.startswith((".", "/")) or model.count("/") > 1:
        raise ConfigError(f"model {model!r}: there is no such folder")
    return model
