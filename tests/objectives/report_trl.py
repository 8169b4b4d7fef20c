"""agentrl's values, gradients and advantages against those that TRL's own code gave for the same batch (`trl_reference.json`).

Where TRL computes something else than the paper, agentrl is held against the paper's formula on TRL's inputs instead.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report_cells import EXACT, Cell, gap, verdict
from report_ours import Play, Scores, Step, loss_of, prepare, slopes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Entry = dict[str, Any]
Options = dict[str, Any]
FLOAT32 = 1e-5
"""Advantages of `advantages` went through TRL's float32."""


@cache
def stored() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "trl_reference.json").read_text())


def entries(section: str, *, kind: str | None = None, **case: Any) -> list[Entry]:
    """Entries of a section whose case says exactly this of the named keys (None: does not say); none at all is an error."""
    found = [
        entry
        for entry in stored()[section]
        if (kind is None or entry.get("kind") == kind) and all(entry["case"].get(key) == value for key, value in case.items())
    ]
    if not found:
        raise LookupError(f"trl_reference.json has no {section} of {kind} with {case}")
    return found


def plays(*, entropy: bool = True) -> list[Play]:
    """TRL's eight rollouts: the sampler's log-probs are its `old_per_token_logps`, unless vLLM sampled."""
    inputs, more = stored()["inputs"], stored()["more_inputs"]
    found = []
    for row, ids in enumerate(inputs["ids"]):
        scores = torch.tensor(inputs["logits"][row], dtype=torch.float64).log_softmax(-1)
        found.append(
            Play(
                now=scores[range(len(ids)), ids].numpy(),
                sampler=np.array(inputs["sampler"][row]),
                reference=np.array(inputs["reference"][row]),
                entropy=-(scores.exp() * scores).sum(-1).numpy(),
                values=np.array(more["value_predictions"][row]),
                start_values=np.array(more["values"][row]),
            )
        )
    return found


def grouped(rows: Sequence[Play], size: int | None = None) -> Step:
    size = size or stored()["group_size"]
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def with_start(rows: Sequence[Play]) -> list[Play]:
    """The trainer's own log-probs before the update, where vLLM sampled."""
    starts = stored()["more_inputs"]["recomputed"]
    return [dataclasses.replace(play, start=np.array(start)) for play, start in zip(rows, starts, strict=True)]


def table_scores(rows: Sequence[int]) -> tuple[Scores, list[torch.Tensor]]:
    """What the table of logits says of some of the rollouts, and its leaves."""
    inputs, more = stored()["inputs"], stored()["more_inputs"]
    tables = [torch.tensor(inputs["logits"][row], dtype=torch.float64, requires_grad=True) for row in rows]
    scores = [table.log_softmax(-1) for table in tables]
    now = [one[range(len(one)), inputs["ids"][row]] for one, row in zip(scores, rows, strict=True)]
    values = [torch.tensor(more["value_predictions"][row], dtype=torch.float64, requires_grad=True) for row in rows]
    return Scores(now=now, entropy=[-(one.exp() * one).sum(-1) for one in scores], values=values), tables


def loss_gaps(entry: Entry, options: Options, step: Step, *, given: bool = True, scale: float = 1.0) -> list[float]:
    """Relative errors of loss and gradient; `scale` is what TRL's are multiplied by."""
    return summed_gaps(entry, [(1 / scale, options)], step, given=given)


def summed_gaps(entry: Entry, terms: Sequence[tuple[float, Options]], step: Step, *, given: bool = True) -> list[float]:
    """The same of a sum of our losses, each times a factor."""
    advantages = stored()["inputs"]["advantages"] if given else None
    scores, tables = table_scores(range(len(stored()["inputs"]["ids"])))
    loss = torch.zeros((), dtype=torch.float64)
    for factor, options in terms:
        loss = loss + factor * loss_of(prepare(options, step, max_tokens=stored()["max_tokens"], advantages=advantages), scores)
    found = np.concatenate([slope.ravel() for slope in slopes_of(loss, tables)])
    expected = np.concatenate([np.ravel(table) for table in entry["gradient"]])
    return [gap(loss.item(), entry["loss"]), gap(found, expected)]


def paper_gaps(options: Options, paper: Any, step: Step, *, given: bool = True) -> list[float]:
    """The same against a paper's formula on TRL's inputs, in log-probs and entropies."""
    advantages = stored()["inputs"]["advantages"] if given else None
    longest = stored()["max_tokens"]
    scores = Scores.of(step)
    loss = loss_of(prepare(options, step, max_tokens=longest, advantages=advantages), scores)
    expected = paper(step, longest, advantages)
    gaps = [gap(loss.item(), expected.loss)]
    for name in ("now", "entropy"):
        found, right = slopes_of(loss, getattr(scores, name)), getattr(expected, name)
        gaps.append(gap(np.concatenate(found), np.concatenate(right)))
    return gaps


def batches(found: Sequence[Entry]) -> str:
    return f"{len(found)} batch" + ("" if len(found) == 1 else "es")


def losses(found: Sequence[Entry], translate: Callable[[Entry], Options], *, late: bool = False) -> Cell:
    """Every entry's loss and gradient."""
    rows = with_start(plays()) if late else plays()
    return verdict([error for entry in found for error in loss_gaps(entry, translate(entry["case"]), grouped(rows))], note=batches(found))


def advantages(found: Sequence[Entry], translate: Callable[[Entry], Options], *, bound: float = FLOAT32) -> Cell:
    """Every entry's advantages; rollouts that a reward function could not score are left out of ours, and have 0 in TRL."""
    gaps = []
    for entry in found:
        rewards = entry["case"]["rewards"]
        several = isinstance(rewards[0], list)
        step, kept = [], []
        for start, group in enumerate(grouped(plays())):
            members = []
            for index, play in enumerate(group, start * len(group)):
                parts = {f"f{number}": row[index] for number, row in enumerate(rewards) if row[index] is not None} if several else {}
                if (several and not parts) or (not several and rewards[index] is None):
                    continue
                members.append(dataclasses.replace(play, parts=parts, reward=0.0 if several else rewards[index]))
                kept.append(index)
            step.append(members)
        ours = [one[0] for one in prepare(translate(entry["case"]), step).advantages]
        theirs = np.array(entry["advantages"])
        gaps += [gap(ours, theirs[kept]), gap(np.delete(theirs, kept), np.zeros(len(theirs) - len(kept)))]
    return verdict(gaps, bound=bound, note=f"advantages of {len(found)}" + (" (float32)" if bound == FLOAT32 else ""))


def merged(*cells: Cell) -> Cell:
    """Several checks in one cell; of errors the largest that is no float32's."""
    failed = [cell for cell in cells if cell.status == "FAIL"]
    exact = [cell for cell in cells if cell.error is not None and cell.error <= EXACT] or list(cells)
    worst = max(failed or exact, key=lambda cell: cell.error or 0.0)
    return Cell(status="FAIL" if failed else "ok", error=worst.error, note=", ".join(cell.note for cell in cells if cell.note))


def differs(why: str, gaps: Sequence[float], *also: Cell) -> Cell:
    """The cell of a check against the paper."""
    cell = verdict(gaps, note=f"differs: {why}")
    return merged(cell, *also) if also else cell


def clipped(case: Options) -> Options:
    """agentrl's names of what TRL's GRPO and RLOO call otherwise."""
    renamed = {"epsilon": "clip_low", "epsilon_high": "clip_high", "use_bias_correction_kl": "kl_correction"}
    options = {renamed[key]: value for key, value in case.items() if key in renamed}
    return options | {key: value for key, value in case.items() if key in ("delta", "beta", "scale_rewards", "normalize_advantages")}


def named(name: str, **more: Any) -> Callable[[Options], Options]:
    """A case's options under a name of ours."""
    return lambda case: {"name": name, "beta": 0.0, **clipped(case), **more}


def by_loss_type(case: Options) -> Options:
    """GRPO with TRL's way to reduce."""
    kinds = {"grpo": "sequence_mean", "dapo": "token_mean", "bnpo": "token_mean", "dr_grpo": "constant"}
    return named("grpo", normalization=kinds[case["loss_type"]])(case)


def paired(rewards: Sequence[float], *, on_policy: bool = False, rivals: bool = False) -> Step:
    """Rollouts 2k and 2k + 1 as the two of a group."""
    rows = [
        dataclasses.replace(play, reward=reward, rival=rivals and index % 2 == 1, sampler=play.now if on_policy else play.sampler)
        for index, (play, reward) in enumerate(zip(plays(), rewards, strict=True))
    ]
    return grouped(rows, 2)


def regression_gaps(entry: Entry) -> list[float]:
    """A*-PO: a group is the four rollouts of a prompt, and four of the reference, whose rewards alone count."""
    rows = [dataclasses.replace(play, reward=reward) for play, reward in zip(plays(), entry["rewards"], strict=True)]
    rivals = [Play(now=np.zeros(1), sampler=np.zeros(1), reference=np.zeros(1), reward=r, rival=True) for r in entry["reference_rewards"]]
    step = [policy + reference for policy, reference in zip(grouped(rows), grouped(rivals), strict=True)]
    prepared = prepare({"name": "a2po", **entry["case"]}, step)
    found, tables = table_scores(range(len(rows)))
    blank = torch.zeros(1, dtype=torch.float64)
    size = stored()["group_size"]
    filled = []
    for name in ("now", "entropy", "values"):
        column = getattr(found, name)
        filled.append([one for start in range(0, len(column), size) for one in [*column[start : start + size], *[blank] * size]])
    loss = loss_of(prepared, Scores(now=filled[0], entropy=filled[1], values=filled[2]))
    slopes = np.concatenate([slope.ravel() for slope in slopes_of(loss, tables)])
    values = np.array(entry["rewards"]) - [one[0] for one in prepared.advantages]
    expected = np.concatenate([np.ravel(table) for table in entry["gradient"]])
    return [gap(loss.item(), entry["loss"]), gap(slopes, expected), gap(values, entry["optimal_values"])]


def ppo_gaps(entry: Entry) -> list[float]:
    """PPO: advantages, returns, and both parts of the loss.

    TRL's value loss is a mean over one position more in each row shorter than the batch, where its error is 0 here.
    """
    case, rows = entry["case"], entry["case"]["rows"]
    renamed = {"gamma": "discount", "lam": "gae_lambda", "vf_coef": "value_coef", "kl_coef": "beta", "kl_estimator": "kl_estimator"}
    renamed |= {"cliprange": "clip_low", "cliprange_value": "clip_value"}
    options = {"name": "ppo"} | {renamed[key]: value for key, value in case.items() if key != "rows"}
    every = plays()
    step = [[dataclasses.replace(every[row], reward=reward)] for row, reward in zip(rows, entry["scores"], strict=True)]
    prepared = prepare(options, step)
    scores, tables = table_scores(rows)
    tokens = sum(len(one) for one in scores.now)
    share = tokens / entry["num_value_positions"]
    loss = loss_of(prepared, scores)
    by_values = [slope * share for slope in slopes_of(loss, scores.values)]
    returns = [one.columns["returns"] for one in prepared.signals.credited]
    double = prepare(options | {"value_coef": 2 * options.get("value_coef", 0.1)}, step)
    of_values = loss_of(double, scores).item() - loss.item()
    return [
        gap(np.concatenate(prepared.advantages), np.concatenate(entry["advantages"])),
        gap(np.concatenate(returns), np.concatenate([row[: len(one)] for row, one in zip(entry["returns"], returns, strict=True)])),
        gap(loss.item() - of_values + of_values * share, entry["loss"]),
        gap(np.concatenate([one.ravel() for one in slopes_of(loss, tables)]), np.concatenate([np.ravel(one) for one in entry["gradient"]])),
        gap(np.concatenate(by_values), np.concatenate(entry["value_gradient"])),
    ]
