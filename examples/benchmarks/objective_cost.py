"""What each objective costs a step of the learner, beside forward and backward. One JSON line an objective, then the dearest.

    python examples/benchmarks/objective_cost.py [--core 0] [--repeats 40] [--objective grpo --objective ppo ...]

One learner takes steps with the objective and with the plainest loss over the same tokens, in turn: -A log p with constant A known
beforehand. Everything else is the same: the model's passes, the optimizer steps, pairs and critic. `cost` is the median difference of
two neighbours over `step_s`, the median plain step. So it counts all that is the objective's own: advantages, what it selects over the
whole step, its loss forward and backward, its metrics. Forward passes that it asks for (a reference, the learner's log-probs before
the step) are in both, named in `passes_s` and left out of `step_s`: the model's, not the objective's, they cost what a forward pass
costs. `loss_share` is the part of a step between the model's forward pass and its backward pass, what the learner does there included.

Seconds are of the CPU, on one pinned core, so that other work on the machine counts little. `quickstart`: 32 groups of 8 rollouts of 8
tokens, as in `examples/quickstart.yaml`. `larger`: 64 groups of 8 rollouts of 32 tokens. Both with the quickstart's model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from agentrl import objectives
from agentrl.config import RunConfig
from agentrl.config_learner import LearnerConfig
from agentrl.learner import Learner
from agentrl.objectives import Credit, Losses, Objective
from agentrl.objectives.registry import BUILT_IN
from agentrl.records import Group, Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun
from agentrl.session import resolve_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives import GroupSignals, StepColumns, TokenBatch

SIZES = {"quickstart": (32, 8), "larger": (64, 32)}
"""Groups of a step, tokens of a rollout."""
MEMBERS = 8
PROMPT_TOKENS = 8


class Switch:
    """An objective that can be made the plainest that trains the same tokens, and back."""

    def __init__(self, objective: Objective) -> None:
        self.plain = False
        self.objective = replace(objective, advantages=self._advantages, loss=self._loss, select=self._select)
        self._own, self._credits = objective, list[Credit]()

    def _advantages(self, groups: Sequence[GroupSignals], options: Any) -> Sequence[np.ndarray | Credit]:
        if self.plain:
            return self._credits
        given = self._own.advantages(groups, options)
        if not self._credits:
            for group, one in zip(groups, given, strict=True):
                constant = np.ones(len(group.rewards))
                self._credits.append(replace(one, advantages=constant) if isinstance(one, Credit) else Credit(advantages=constant))
        return given

    def _loss(self, batch: TokenBatch, options: Any) -> Losses:
        return minus_logprobs(batch) if self.plain else self._own.loss(batch, options)

    def _select(self, columns: StepColumns, options: Any) -> dict[str, np.ndarray]:
        return {} if self.plain else self._own.select(columns, options)


def minus_logprobs(batch: TokenBatch) -> Losses:
    """[tokens] -A log p; the critic takes part in the backward pass where there is one."""
    loss = -batch.logprobs * batch.advantages
    return Losses(per="token", loss=loss if batch.values is None else loss + 0.0 * batch.values)


def make_groups(groups: int, tokens: int, vocabulary: int, rival: float | None) -> list[Group]:
    """Groups of random tokens with rewards between 0 and 1, the second half of each sampled by a rival where there is one."""
    draw = np.random.default_rng(0)
    made = []
    for index in range(groups):
        start = draw.integers(3, vocabulary, PROMPT_TOKENS)
        task = Task(id=str(index), environment="benchmark", row={})
        rollouts = tuple(rollout(draw, start, tokens, vocabulary, task, member, rival) for member in range(MEMBERS))
        made.append(Group(index=index, task=task, rollouts=rollouts, dispatched=Version()))
    return made


def rollout(
    draw: np.random.Generator, start: np.ndarray, tokens: int, vocabulary: int, task: Task, member: int, rival: float | None
) -> Rollout:
    """One turn."""
    total = len(start) + tokens
    span = TokenSpan(
        ids=np.concatenate([start, draw.integers(3, vocabulary, tokens)]),
        source=np.repeat([Source.PROMPT, Source.SAMPLED], [len(start), tokens]),
        logprobs=np.concatenate([np.full(len(start), np.nan), draw.normal(-4, 0.3, tokens)]),
        versions=(VersionRun(version=Version(), start=len(start), end=total),),
    )
    share = rival if rival is not None and member >= MEMBERS // 2 else 0.0
    turn = Turn(parent=-1, span=span, contract=SamplingContract(reference_share=share), finish_reason="stop")
    return Rollout(task=task, member=member, turns=(turn,), messages=(), ending="complete", score=Score(value=float(draw.random())))


def timed(learner: Learner, groups: Sequence[Group]) -> dict[str, float]:
    """CPU seconds of a step: whole, without forward passes before it, of those, and of the loss."""
    wall, cpu = time.perf_counter(), time.process_time()
    metrics = learner.update(groups)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    passes = cpu * metrics["time/reference_s"] / wall
    return {"whole": cpu, "step": cpu - passes, "passes": passes, "loss": cpu * metrics["time/objective_s"] / wall}


def measure(name: str, folder: str, vocabulary: int, size: tuple[int, int], repeats: int) -> dict[str, float]:
    """One objective under its defaults against the plain one."""
    objective, options = objectives.get(name), objectives.validate({"name": name})
    switch = Switch(objective)
    groups = make_groups(*size, vocabulary, objective.needs(options).rival)
    config = RunConfig(model=folder, learner=LearnerConfig(device="cpu", lr=0.0), steps=10**6)
    learner = Learner(config, switch.objective, options, folder, threads=1)
    pairs = []
    for number in range(repeats + 2):
        found = {}
        for switch.plain in (False, True) if number % 2 == 0 else (True, False):
            found[switch.plain] = timed(learner, groups)
        pairs.append((found[False], found[True]))
    pairs = pairs[2:]  # the first ones allocate and cache
    step = statistics.median(other["step"] for _, other in pairs)
    return {
        "cost": statistics.median(one["whole"] - other["whole"] for one, other in pairs) / step,
        "step_s": step,
        "passes_s": statistics.median(one["passes"] for one, _ in pairs),
        "loss_share": statistics.median(one["loss"] for one, _ in pairs) / step,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=40, help="of the small step; a quarter of that for the larger one")
    parser.add_argument("--objective", action="append", help="one or more; by default all")
    parser.add_argument("--size", action="append", choices=SIZES, help="by default both")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    folder = resolve_model("quickstart")
    vocabulary = transformers.AutoConfig.from_pretrained(folder).vocab_size
    dearest: dict[str, tuple[float, str]] = {}
    for name in options.objective or [one.name for one in BUILT_IN]:
        line: dict[str, Any] = {"benchmark": "objective_cost", "objective": name}
        for size in options.size or SIZES:
            repeats = options.repeats if size == "quickstart" else max(5, options.repeats // 4)
            found = measure(name, folder, vocabulary, SIZES[size], repeats)
            line[size] = {key: round(value, 4) for key, value in found.items()}
            dearest[size] = max(dearest.get(size, (-1.0, "")), (line[size]["cost"], name))
        print(json.dumps(line), flush=True)
    worst = {size: {"objective": name, "cost": cost} for size, (cost, name) in dearest.items()}
    print(json.dumps({"benchmark": "objective_cost", "worst": worst}))


if __name__ == "__main__":
    main()
