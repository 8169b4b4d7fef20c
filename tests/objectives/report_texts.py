"""The report's rows of supervised losses and reward models: no rollouts are drawn, so that there is nothing to enumerate.

Worked by hand: two texts with the trained tokens A1, A2 and B1, of probabilities 0.60, 0.30 and 0.20; two pairs with the scores 2 and 1/2,
-1 and 1; two texts in steps whose logits (wrong, right) are (0, 1) with label 1, (0, 1) with label 0, and (2, -1) with label 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report_cells import Cell, gap, reason, verdict
from report_differences import BOUND, STENCIL, H

from agentrl.examples import Example, Text
from agentrl.learner.batch import Part, parts_of, token_batch
from agentrl.learner.examples import candidates_of
from agentrl.learner.model import Scores
from agentrl.learner.signals import signals_of
from agentrl.objectives import Losses, Objective, ObjectiveConfig, get, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Options = dict[str, Any]
FLOAT32 = 1e-6
"""transformers takes the logits of a token classifier to float32 before its loss, and sums smoothed losses in it."""


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """A line of the report; its checks need no argument but its options."""

    title: str
    options: Options
    hand: Callable[[], Cell]
    differences: Callable[[], Cell]
    trl: Callable[[], Cell]
    learner: Options = field(default_factory=dict)
    """Options beside its own for steps of the real learner."""
    learner_note: str = ""
    section: str = "Supervised losses and reward models"

    def enumeration(self) -> Cell:
        """None."""
        return reason("texts are given, not drawn")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that the loss of a step needs beside the model's outputs."""

    objective: Objective
    config: ObjectiveConfig
    part: Part

    def losses(self, leaf: torch.Tensor, **more: torch.Tensor) -> tuple[torch.Tensor, Losses]:
        """The step's loss and what the objective says, where the model gives `leaf`: log-probs [tokens], or outputs [tokens, labels]."""
        nothing = torch.full((len(leaf),), torch.nan, dtype=leaf.dtype)
        given = {"logprobs": leaf} if leaf.ndim == 1 else {"logprobs": nothing, "outputs": leaf}
        scores = Scores(entropy=nothing, **given, **more)
        batch, weights = token_batch(self.part.active, self.part, scores, step=0)
        losses = self.objective.loss(batch, self.config)
        return (losses.loss * weights[losses.per]).sum(), losses


def prepare(options: Mapping[str, Any], examples: Sequence[Example]) -> Prepared:
    """From rows to weights, as the learner goes about it."""
    objective, config = get(options["name"]), validate(options)
    needs = objective.needs(config)
    found = candidates_of(objective.prepare(examples, config), needs)
    signals = signals_of(found, [dict(sample.columns) for sample in found.samples], objective, config, needs, seed=(0, 0))
    (part,) = parts_of(
        found.samples,
        signals,
        needs,
        normalization=objective.normalization(config),
        max_tokens=1,
        skips_zero=objective.zero_advantage_is_zero_loss(config),
        seed=(0, 0),
    )
    return Prepared(objective=objective, config=config, part=part)


def value_and_slopes(options: Mapping[str, Any], examples: Sequence[Example], leaf: np.ndarray) -> tuple[float, np.ndarray, Losses]:
    """The step's loss, its gradient in the leaf, and what the objective says."""
    given = torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
    loss, losses = prepare(options, examples).losses(given)
    (slopes,) = torch.autograd.grad(loss, given)
    return float(loss.detach()), slopes.numpy(), losses


def texts(lengths: Sequence[int]) -> list[Example]:
    """Rows of one text, all of it trained but a first token."""
    return [_row((Text(ids=np.arange(length + 1, dtype=np.int32), trained=np.arange(length + 1) > 0),)) for length in lengths]


def pairs(margins: Sequence[float]) -> list[Example]:
    text = Text(ids=np.arange(2, dtype=np.int32), trained=np.arange(2) > 0)
    return [_row((text, text), {"margin": margin} if margin else {}) for margin in margins]


def steps(labels: Sequence[Sequence[int]]) -> list[Example]:
    """Rows whose steps are one token."""
    found = [np.array([np.nan, *row], dtype=np.float32) for row in labels]
    return [
        _row((Text(ids=np.arange(len(one), dtype=np.int32), trained=np.arange(len(one)) > 0, labels=one, prompt_length=1),))
        for one in found
    ]


def _row(found: tuple[Text, ...], parts: dict[str, float] | None = None) -> Example:
    return Example(where="row", texts=found, rewards=(1.0, 0.0)[: len(found)], parts=parts or {})


def numeric(options: Mapping[str, Any], examples: Sequence[Example], leaf: np.ndarray) -> np.ndarray:
    """Five-point differences of the loss in each number of the leaf."""
    found, prepared = np.zeros(leaf.size), prepare(options, examples)
    for place in range(leaf.size):
        for size, weight in STENCIL:
            moved = leaf.copy()
            moved.reshape(-1)[place] += size * H
            found[place] += weight * float(prepared.losses(torch.tensor(moved))[0]) / (12 * H)
    return found.reshape(leaf.shape)


def worked(options: Mapping[str, Any], examples: Sequence[Example], leaf: np.ndarray, loss: float, slopes: Sequence[Any]) -> Cell:
    """Values worked out by hand against agentrl's."""
    value, found, _ = value_and_slopes(options, examples, leaf)
    return verdict([gap(value, loss), gap(found, slopes)], note="slopes as well as the loss")


def differenced(options: Mapping[str, Any], examples: Sequence[Example], leaf: np.ndarray) -> Cell:
    return verdict([gap(value_and_slopes(options, examples, leaf)[1], numeric(options, examples, leaf))], bound=BOUND)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


CHANCES = np.array([0.6, 0.3, 0.2])
PAIR_SCORES = np.array([[2.0], [0.5], [-1.0], [1.0]])
STEP_LOGITS = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, -1.0]])
DRAW = np.random.default_rng(4)
LEAVES = {"tokens": -DRAW.uniform(0.2, 3.0, 9), "score": DRAW.normal(0, 1, (8, 1)), "labels": DRAW.normal(0, 1, (6, 2))}
MANY = {"tokens": texts([4, 1, 3, 1]), "score": pairs([0.0, 0.7, 0.0, 1.2]), "labels": steps([[1, 0, 0], [1], [0, 1]])}


def nll_by_hand(**options: Any) -> Cell:
    return worked({"name": "sft", **options}, texts([2, 1]), np.log(CHANCES), -(log(0.6) + log(0.3) + log(0.2)) / 3, [-1 / 3] * 3)


def dft_by_hand() -> Cell:
    loss = -(0.6 * log(0.6) + 0.3 * log(0.3) + 0.2 * log(0.2)) / 3
    return worked({"name": "sft", "loss": "dft"}, texts([2, 1]), np.log(CHANCES), loss, (-CHANCES / 3).tolist())


def dft_differences() -> Cell:
    """The weight has no gradient: differences of the plain loss, each token's times its probability."""
    leaf, examples = LEAVES["tokens"], MANY["tokens"]
    plain = numeric({"name": "sft"}, examples, leaf)
    return verdict([gap(value_and_slopes({"name": "sft", "loss": "dft"}, examples, leaf)[1], np.exp(leaf) * plain)], bound=BOUND)


SMOOTHED = {"name": "sft", "label_smoothing": 0.1}
UNIFORM = np.array([0.1, 0.05, 0.2])
"""Geometric means of the vocabulary's probabilities, where the trained tokens have those of `CHANCES`."""


def smoothed_by_hand() -> Cell:
    leaves = [torch.tensor(np.log(one), requires_grad=True) for one in (CHANCES, UNIFORM)]
    loss, _ = prepare(SMOOTHED, texts([2, 1])).losses(leaves[0], uniform_logprobs=leaves[1])
    slopes = torch.autograd.grad(loss, leaves)
    expected = -(0.9 * (log(0.6) + log(0.3) + log(0.2)) + 0.1 * (log(0.1) + log(0.05) + log(0.2))) / 3
    gaps = [gap(float(loss.detach()), expected), gap(slopes[0].numpy(), [-0.3] * 3), gap(slopes[1].numpy(), [-0.1 / 3] * 3)]
    return verdict(gaps, note="slopes as well as the loss")


def smoothed_differences() -> Cell:
    """In log-probs and in their means over the vocabulary."""
    prepared, count = prepare(SMOOTHED, MANY["tokens"]), len(LEAVES["tokens"])
    both = torch.tensor(np.concatenate([LEAVES["tokens"], LEAVES["tokens"] - 1.0]), requires_grad=True)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return prepared.losses(at[:count], uniform_logprobs=at[count:])[0]

    (slopes,) = torch.autograd.grad(loss(both), both)
    found = np.zeros(2 * count)
    for place in range(2 * count):
        for size, weight in STENCIL:
            moved = both.detach().clone()
            moved[place] += size * H
            found[place] += weight * float(loss(moved)) / (12 * H)
    return verdict([gap(slopes.numpy(), found)], bound=BOUND)


def pairs_by_hand() -> Cell:
    first, second = sigmoid(-1.5), sigmoid(2.0)
    slopes = [[-first / 2], [first / 2], [-second / 2], [second / 2]]
    return worked({"name": "reward_model"}, pairs([0, 0]), PAIR_SCORES, (log(1 + exp(-1.5)) + log(1 + exp(2))) / 2, slopes)


def margins_by_hand() -> Cell:
    # Margins 1 and 0; the sums of scores are 5/2 and 0, the weight of their squares 1/10.
    first, second = sigmoid(-0.5), sigmoid(2.0)
    slopes = [[(-first + 0.5) / 2], [(first + 0.5) / 2], [-second / 2], [second / 2]]
    loss = (log(1 + exp(-0.5)) + 0.1 * 6.25 + log(1 + exp(2))) / 2
    return worked({"name": "reward_model", "center_coefficient": 0.1}, pairs([1, 0]), PAIR_SCORES, loss, slopes)


def steps_by_hand() -> Cell:
    right, third = sigmoid(1.0), sigmoid(3.0)
    slopes = [[(1 - right) / 3, (right - 1) / 3], [-right / 3, right / 3], [(third - 1) / 3, (1 - third) / 3]]
    loss = -(log(right) + log(1 - right) + log(third)) / 3
    return worked({"name": "process_reward_model"}, steps([[1, 0], [0]]), STEP_LOGITS, loss, slopes)


def last_by_hand() -> Cell:
    right, third = sigmoid(1.0), sigmoid(3.0)
    slopes = [[-right / 2, right / 2], [(third - 1) / 2, (1 - third) / 2]]
    options = {"name": "process_reward_model", "last_step_only": True}
    return worked(options, steps([[1, 0], [0]]), STEP_LOGITS[1:], -(log(1 - right) + log(third)) / 2, slopes)


def straight(output: str, **options: Any) -> Callable[[], Cell]:
    """Nothing is under a stop-gradient."""
    count = 3 if options.get("last_step_only") else len(LEAVES[output])
    return lambda: differenced(options, MANY[output], LEAVES[output][:count])


@cache
def stored() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "trl_texts.json").read_text())


def trl_sft(loss: str, smoothing: float | None = None) -> Cell:
    """The gradient in the logits of TRL's table: ours in the log-probs goes through its softmax."""
    case = {"loss_type": loss} | ({} if smoothing is None else {"label_smoothing_factor": smoothing})
    (entry,) = [one for one in stored()["sft"] if one["case"] == case]
    tables = [torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in stored()["inputs"]["logits"]]
    ids = stored()["inputs"]["ids"]
    logprobs = torch.cat([table.log_softmax(-1)[range(len(row)), row] for table, row in zip(tables, ids, strict=True)])
    uniform = torch.cat([table.log_softmax(-1).mean(-1) for table in tables])
    options = {"name": "sft", "loss": loss, "label_smoothing": smoothing or 0.0}
    value, _ = prepare(options, texts([len(row) for row in ids])).losses(logprobs, uniform_logprobs=uniform)
    slopes = [slope.numpy() for slope in torch.autograd.grad(value, tables)]
    gaps = [gap(float(value.detach()), entry["loss"])]
    gaps += [gap(found, given) for found, given in zip(slopes, entry["gradient"], strict=True)]
    return verdict(gaps) if smoothing is None else verdict(gaps, bound=FLOAT32, note="its label smoother sums in float32")


def trl_reward(*, more: bool) -> Cell:
    gaps = []
    for entry in stored()["reward"]:
        case = entry["case"]
        if bool(case) != more:
            continue
        options = {"name": "reward_model", "center_coefficient": case.get("center_rewards_coefficient", 0.0)}
        margins = stored()["pairs"]["margins"] if case.get("margin") else [0.0] * len(stored()["pairs"]["margins"])
        value, slopes, losses = value_and_slopes(options, pairs(margins), np.array(stored()["pairs"]["scores"])[:, None])
        found = {name: float(values.mean()) for name, values in losses.metrics.items()}
        found |= {name: float(values.min()) for name, values in losses.lowest.items()}
        found |= {name: float(values.max()) for name, values in losses.highest.items()}
        given = {name: number for name, number in entry["metrics"].items() if name != "num_tokens"}
        gaps += [gap(value, entry["loss"]), gap(slopes[:, 0], entry["gradient"])]
        gaps += [gap([found[name] for name in given], list(given.values()))]
    return verdict(gaps, note="accuracy, margin, mean, least and largest reward too")


def trl_steps(*, last: bool) -> Cell:
    (entry,) = [one for one in stored()["prm"] if one["case"]["train_on_last_step_only"] == last]
    logits, labels = stored()["steps"]["logits"], stored()["steps"]["labels"]
    kept = [[len(row) - 1] if last else range(len(row)) for row in labels]
    leaf = np.array([row[place] for row, places in zip(logits, kept, strict=True) for place in places])
    value, slopes, _ = value_and_slopes({"name": "process_reward_model", "last_step_only": last}, steps(labels), leaf)
    all_steps = [(row, place) for row, given in enumerate(labels) for place in range(len(given))]
    theirs = np.array([slope for slope, (row, place) in zip(entry["gradient"], all_steps, strict=True) if place in kept[row]])
    others = [
        abs(number) for slope, (row, place) in zip(entry["gradient"], all_steps, strict=True) if place not in kept[row] for number in slope
    ]
    return verdict([gap(value, entry["loss"]), gap(slopes, theirs), max(others, default=0.0)], bound=FLOAT32, note="TRL 1.12, in float32")


TEXTS: tuple[TextRow, ...] = (
    TextRow(
        title="sft",
        options={"name": "sft"},
        hand=nll_by_hand,
        differences=straight("tokens", name="sft"),
        trl=lambda: trl_sft("nll"),
    ),
    TextRow(
        title="sft, loss: dft",
        options={"name": "sft", "loss": "dft"},
        hand=dft_by_hand,
        differences=dft_differences,
        trl=lambda: trl_sft("dft"),
    ),
    TextRow(
        title="sft, label_smoothing: 0.1",
        options=SMOOTHED,
        hand=smoothed_by_hand,
        differences=smoothed_differences,
        trl=lambda: trl_sft("nll", 0.1),
    ),
    TextRow(
        title="sft, neftune_alpha: 5",
        options={"name": "sft", "neftune_alpha": 5.0},
        hand=lambda: nll_by_hand(neftune_alpha=5.0),
        differences=straight("tokens", name="sft", neftune_alpha=5.0),
        trl=lambda: reason("draws other noise; transformers with ours: test_noise"),
        learner_note="the same noise for each row",
    ),
    TextRow(
        title="reward_model",
        options={"name": "reward_model"},
        hand=pairs_by_hand,
        differences=straight("score", name="reward_model"),
        trl=lambda: trl_reward(more=False),
    ),
    TextRow(
        title="reward_model, margin, center_coefficient",
        options={"name": "reward_model", "center_coefficient": 0.1},
        hand=margins_by_hand,
        differences=straight("score", name="reward_model", center_coefficient=0.1),
        trl=lambda: trl_reward(more=True),
    ),
    TextRow(
        title="process_reward_model",
        options={"name": "process_reward_model"},
        hand=steps_by_hand,
        differences=straight("labels", name="process_reward_model"),
        trl=lambda: trl_steps(last=False),
    ),
    TextRow(
        title="process_reward_model, last_step_only",
        options={"name": "process_reward_model", "last_step_only": True},
        hand=last_by_hand,
        differences=straight("labels", name="process_reward_model", last_step_only=True),
        trl=lambda: trl_steps(last=True),
    ),
)
