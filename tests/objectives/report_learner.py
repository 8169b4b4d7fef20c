"""Gradients of the real learner on a tiny model: the same however a step is cut, packed and ordered, and on two ranks.

The model is in float64, moved away from its reference; its critic, where there is one, has a head that says something. Groups are
ragged, with two turns, forks, turn rewards, parts, and rivals where the objective asks for them. An objective over a dataset is given rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from report_cells import EXACT, Cell, verdict
from report_ours import AFTER, adapted, configured

from agentrl.config import TeacherConfig
from agentrl.records import Group, Score
from agentrl.rows import rows_of

sys.path.insert(0, str(Path(__file__).parents[1] / "learner"))
import dataset_rows
import learner_fakes as fakes
from tokenizer_fakes import foreign_examples, foreign_pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.examples import Example
    from agentrl.learner import Learner
    from agentrl.records import Rollout, TokenSpan

Gradient = dict[str, torch.Tensor]
Options = dict[str, Any]
SETTINGS: Options = {"lr": 0.0, "max_grad_norm": None}
STEP = 3
"""Steps that the learner has done, so that version 0 is stale."""


@cache
def model_folder() -> str:
    """A model whose norms stay in float64; it is removed at the end of the process."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    folder = tempfile.TemporaryDirectory(prefix="report-model-")
    _KEPT.append(folder)
    return fakes.tiny_model(Path(folder.name), kind="starcoder2")


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def make_learner(options: Mapping[str, Any], folder: str, **more: Any) -> Learner:
    """A learner whose weights and critic were moved, the same on every rank."""
    config = fakes.run_config(learner=SETTINGS | more.pop("settings", {}))
    objective, own = configured(options)
    if options["name"] == "gold":
        folder, teacher = foreign_pair(folder)
        config = config.model_copy(update={"teacher": [TeacherConfig(model=teacher)]})
    learner = fakes.make_learner(folder, config, {key: options[key] for key in options if key != AFTER}, master_dtype=torch.float64, **more)
    learner.state = adapted(objective, own, options)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.models.trained:
            # A tensor of 0 is a critic's fresh head.
            size = 0.05 if parameter.any() else 0.5
            parameter.add_(size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    return learner


def nearby_groups(learner: Learner) -> list[Group]:
    """Groups sampled by a policy some way off the learner's."""
    draw = np.random.default_rng(5)
    groups = []
    for group in fakes.make_groups(11, groups=3, members=4):
        rollouts = []
        for rollout in group.rollouts:
            spans = _sampled_nearby(learner, rollout, draw)
            turns = [
                dataclasses.replace(turn, span=span, reward=float(draw.uniform(-0.2, 0.2)))
                for turn, span in zip(rollout.turns, spans, strict=True)
            ]
            parts = {"right": float(draw.integers(0, 2)), "style": float(draw.uniform())}
            score = Score(value=rollout.score.value, parts=parts)
            rollouts.append(dataclasses.replace(rollout, turns=tuple(turns), score=score))
        groups.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    return groups


def as_wanted(groups: Sequence[Group], learner: Learner) -> list[Group] | list[Example]:
    """The groups, their second halves said to be sampled by the rival that the objective asks for; or rows, where it learns from them."""
    kind = learner._objective.data
    if learner._objective.name == "gold":
        return foreign_examples()
    if kind is not None:
        return dataset_rows.make_examples(kind, 11, texts=3 if learner._objective.name == "tpo" else 2)
    asked = learner.models.needs.teacher
    if asked is not None and asked.prompt is not None:
        return [_told(group) for group in groups]
    rival = learner.models.needs.rival
    if rival is None:
        return list(groups)

    def sampled(rollout: Rollout) -> Rollout:
        turns = [dataclasses.replace(turn, contract=dataclasses.replace(turn.contract, reference_share=rival)) for turn in rollout.turns]
        return dataclasses.replace(rollout, turns=tuple(turns))

    return [
        dataclasses.replace(group, rollouts=tuple(one if one.member < len(group.rollouts) // 2 else sampled(one) for one in group.rollouts))
        for group in groups
    ]


def _told(group: Group) -> Group:
    """The group, the teachers of all rollouts but one with prompts of their own."""
    draw = np.random.default_rng(group.index)
    prompts = [draw.integers(3, fakes.VOCABULARY, 3 + one.member).astype(np.int32) if one.member else None for one in group.rollouts]
    return dataclasses.replace(
        group,
        rollouts=tuple(dataclasses.replace(one, teacher_prompt=prompt) for one, prompt in zip(group.rollouts, prompts, strict=True)),
    )


def _sampled_nearby(learner: Learner, rollout: Rollout, draw: np.random.Generator) -> list[TokenSpan]:
    """The spans of a rollout's turns with log-probs within some tenths of a nat of the learner's own."""
    spans = [turn.span for turn in rollout.turns]
    for row in rows_of(rollout):
        own = np.array([np.nan, *learner.logprobs_of(row.ids.tolist())])
        for index in sorted(set(row.turn.tolist())):
            values = own[row.turn == index] + draw.normal(0, 0.2, len(spans[index].ids))
            logprobs = np.where(spans[index].sampled, np.minimum(values, -1e-3), np.nan).astype(np.float32)
            spans[index] = dataclasses.replace(spans[index], logprobs=logprobs)
    return spans


def gradient(learner: Learner, data: Sequence[Group] | Sequence[Example], **settings: Any) -> Gradient:
    """The gradient of every trained parameter, with other settings of the learner, if any; the learner is left as it was."""
    taken: Gradient = {}
    names = {id(one): f"{kind}{name}" for kind, model, _ in learner.models.saved() for name, one in model.named_parameters()}

    def read(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    taken[names[id(parameter)]] = parameter.grad.detach().clone()

    handles = [optimizer.register_step_pre_hook(read) for optimizer in learner.models.optimizers]
    config, state = learner.config, dict(learner.state)
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update=settings)})
    learner.step = STEP
    (learner.update if learner._objective.data is None else learner.update_examples)(data)
    learner.config, learner.state = config, state
    for handle in handles:
        handle.remove()
    return taken


def distances(found: Gradient, expected: Gradient) -> list[float]:
    """Relative L2 distance of each parameter's gradient; no gradient at all, or one of 0 everywhere, proves nothing and is infinite."""
    if found.keys() != expected.keys() or not any(one.any() for one in expected.values()):
        return [float("inf")]
    return [fakes.distance({name: found[name]}, {name: expected[name]}) for name in expected]


@cache
def _groups() -> list[Group]:
    return nearby_groups(make_learner({"name": "grpo"}, model_folder()))


@cache
def _whole(options: str) -> tuple[Learner, list[Group] | list[Example], Gradient]:
    learner = make_learner(json.loads(options), model_folder())
    groups = as_wanted(_groups(), learner)
    return learner, groups, gradient(learner, groups)


def invariance(options: Mapping[str, Any], note: str = "") -> Cell:
    """One micro-batch against several, one rollout or pair each, and against other orders of groups and of their members."""
    learner, groups, whole = _whole(json.dumps(dict(options)))
    turned = [dataclasses.replace(one, rollouts=one.rollouts[::-1]) if isinstance(one, Group) else one for one in reversed(groups)]
    others = [
        gradient(learner, groups, tokens_per_micro_batch=1),
        gradient(learner, groups, tokens_per_micro_batch=40),
        gradient(learner, turned),
        gradient(learner, turned, tokens_per_micro_batch=40),
    ]
    return verdict([worst for other in others for worst in distances(other, whole)], bound=EXACT, note=note)


def on_two_ranks(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Gradient]:
    """Rank 0's gradient of every row, by title; both ranks are started once for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        plan.write_text(json.dumps({"model": model_folder(), "rows": rows, "out": folder}))
        script = Path(__file__).parents[1] / "learner" / "report_two_ranks.py"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(plan)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode:
            raise RuntimeError(f"two ranks failed: {done.stderr[-4000:]}")
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for title in rows:
        if any(not torch.equal(ranks[0][title][name], other) for name, other in ranks[1][title].items()):
            raise RuntimeError(f"the two ranks ended with different gradients of {title}")
    return ranks[0]


def two_ranks(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Cell]:
    """A cell for every row, by title, against one rank's gradient."""
    together = on_two_ranks(rows)
    return {title: verdict(distances(together[title], _whole(json.dumps(dict(options)))[2])) for title, options in rows.items()}
