"""One run at a forced lag, in one process: the sampler holds the weights of exactly `lag` updates ago.

    snapshot `step - lag` -> embedded engine's scheduler -> environment's score -> groups -> Learner.update -> snapshot `step + 1`

Nothing but the objective differs between two runs of one lag and seed: tasks, their order, the random stream of each completion, the
learning rate and the optimizer are the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentrl import objectives, registry
from agentrl.config import RunConfig
from agentrl.engines.decoder import load_decoder
from agentrl.engines.protocol import Completion, Request
from agentrl.engines.scheduler import Scheduler
from agentrl.environment import Episode
from agentrl.learner import Learner
from agentrl.quickstart import model_path
from agentrl.records import Group, Rollout, SamplingContract, Source, Task, Version
from agentrl.rollout.episode import request_seed
from agentrl.rollout.render import Renderer
from agentrl.rollout.turns import sampled_turn
from agentrl.tasks import TaskSource, make_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Snapshot = dict[str, torch.Tensor]
ENV = "arithmetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all runs of the study share."""

    steps: int = 150
    groups_per_step: int = 16
    group_size: int = 8
    lr: float = 3e-4
    warmup_steps: int = 5
    max_tokens: int = 8
    eval_every: int = 25

    def run_config(self, seed: int) -> RunConfig:
        """As a run file."""
        learner = {"lr": self.lr, "warmup_steps": self.warmup_steps, "device": "cpu", "threads": 1}
        return RunConfig(
            model="quickstart",
            env=ENV,
            seed=seed,
            steps=self.steps,
            groups_per_step=self.groups_per_step,
            group_size=self.group_size,
            sampling={"max_tokens": self.max_tokens},
            learner=learner,
            engine={"device": "cpu"},
        )


class Player:
    """Plays tasks of the environment with one copy of the model, whose weights it is given."""

    def __init__(self, config: RunConfig) -> None:
        loaded = load_decoder(model_path(), config.engine)
        self._weights = loaded.decoder.weights
        self._scheduler = Scheduler(loaded, num_slots=128, recompute=False, version=Version(), memory_bytes=1 << 30)
        self._renderer = Renderer.load(model_path())
        self._environment = registry.load(ENV)()
        self._config = config
        self.source = TaskSource(ENV, list(self._environment.tasks("train")), config.seed)
        held_out = list(self._environment.tasks("eval"))
        self.held_out = [make_task(ENV, held_out, index) for index in range(len(held_out))]

    def load(self, snapshot: Snapshot, step: int) -> None:
        """Sample with these weights from now on."""

        def write() -> str:
            for name, tensor in snapshot.items():
                self._weights.bindings[name].write(tensor)
            self._weights.refresh()
            return ""

        self._scheduler.replace_weights(Version(step=step), write)

    def play(self, tasks: Sequence[Task], members: int, stream: str) -> list[tuple[Rollout, ...]]:
        """`members` scored rollouts of each task; `stream` names the random numbers."""
        jobs = [(task, member) for task in tasks for member in range(members)]
        prompts = [self._renderer.prompt(self._environment.start(task)).ids for task in tasks]
        for number, (task, member) in enumerate(jobs):
            request = Request(
                ids=prompts[number // members],
                max_tokens=self._config.sampling.max_tokens,
                contract=SamplingContract(),
                seed=request_seed(f"{stream}\n{task.id}\n{member}", 0),
                stop_ids=self._renderer.stop_ids,
            )
            self._scheduler.submit((0, number), request)
        done: dict[int, Completion] = {}
        while len(done) < len(jobs):
            for finished in self._scheduler.step():
                if isinstance(finished.result, str):
                    raise RuntimeError(finished.result)
                done[finished.key[1]] = finished.result
        scored = asyncio.run(self._score_all([(task, member, prompts[n // members], done[n]) for n, (task, member) in enumerate(jobs)]))
        return [tuple(scored[at : at + members]) for at in range(0, len(scored), members)]

    async def _score_all(self, played: Iterable[tuple[Task, int, np.ndarray, Completion]]) -> list[Rollout]:
        return [await self._scored(*one) for one in played]

    async def _scored(self, task: Task, member: int, prompt: np.ndarray, completion: Completion) -> Rollout:
        start = self._environment.start(task)
        messages = [*start, {"role": "assistant", "content": self._renderer.text(completion.ids)}]
        ending = "truncated" if completion.finish_reason == "length" else "complete"
        episode = Episode(task=task, prompt=start, messages=messages, completion_ids=completion.ids.tolist(), ending=ending)
        turn = sampled_turn(-1, prompt, Source.PROMPT, completion, SamplingContract())
        score = await self._environment.score(episode)
        return Rollout(task=task, member=member, turns=(turn,), messages=tuple(messages), ending=ending, score=score)


def held_out_reward(player: Player) -> float:
    """Mean reward on all held-out tasks, sampled at temperature 1 as in training, by the same random numbers each time."""
    return float(np.mean([group[0].score.value for group in player.play(player.held_out, 1, "held-out")]))


def train(objective: dict[str, Any], lag: int, seed: int, setting: Setting) -> dict[str, Any]:
    """One run; what it measured, JSON-serializable."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    config = setting.run_config(seed)
    row = objectives.get(objective["name"])
    learner = Learner(config, row, objectives.validate(objective), model_path(), threads=1)
    player = Player(config)
    snapshots: deque[Snapshot] = deque([_snapshot(learner)], maxlen=lag + 1)
    player.load(snapshots[-1], 0)
    held_out, metrics = {0: held_out_reward(player)}, []
    for step in range(setting.steps):
        player.load(snapshots[0], max(0, step - lag))
        places = range(step * setting.groups_per_step, (step + 1) * setting.groups_per_step)
        tasks = [player.source.task(place) for place in places]
        version = Version(step=max(0, step - lag))
        groups = [
            Group(index=place, task=task, rollouts=rollouts, dispatched=version)
            for place, task, rollouts in zip(places, tasks, player.play(tasks, setting.group_size, str(seed)), strict=True)
        ]
        rewards = {"reward": float(np.mean([score for group in groups for score in group.scores]))}
        metrics.append(learner.update(groups) | rewards)
        snapshots.append(_snapshot(learner))
        if (step + 1) % setting.eval_every == 0 or step + 1 == setting.steps:
            player.load(snapshots[-1], step + 1)
            held_out[step + 1] = held_out_reward(player)
    return {
        "held_out": {str(step): round(value, 4) for step, value in held_out.items()},
        "reward": [round(one["reward"], 4) for one in metrics],
        "figures": figures(metrics),
        "seconds": round(time.perf_counter() - started, 1),
    }


STRUCK = ("clip_ratio/region_mean", "correction/tis_clipped", "correction/masked", "cispo_clip_ratio")
"""Shares of tokens that a method clipped or left out; a method reports one of them."""


def figures(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over a run's steps."""
    names = {
        "ess": "sampling/ess",
        "ratio_p99": "sampling/ratio_p99",
        "ratio_max": "sampling/importance_sampling_ratio/max",
        "entropy": "entropy",
        "grad_norm": "grad_norm",
    }
    found = {short: [one[name] for one in metrics if name in one] for short, name in names.items()}
    found["struck"] = [max(one[name] for name in STRUCK if name in one) for one in metrics if any(name in one for name in STRUCK)]
    return {name: float(f"{np.mean(values):.4g}") for name, values in found.items() if values}


def _snapshot(learner: Learner) -> Snapshot:
    return {name: tensor.detach().clone() for name, tensor in learner.named_weights()}
