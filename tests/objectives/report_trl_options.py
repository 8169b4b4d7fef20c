"""More of `report_trl_rows`: what TRL says of corrections and options."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import report_choices as choices
import report_credit as credit
import report_papers as papers
from report_cells import Cell, reason, verdict
from report_papers import Paper
from report_trl import (
    Options,
    advantages,
    by_loss_type,
    differs,
    entries,
    grouped,
    loss_gaps,
    losses,
    merged,
    named,
    paper_gaps,
    plays,
    stored,
    summed_gaps,
    with_start,
)
from report_trl_rows import not_in_trl

veto = ratio_cap = not_in_trl


def only_k3() -> Cell:
    return reason("not in TRL, whose loss has k3 alone")


def _vllm(mode: str, correction: str, **more: Any) -> Cell:
    def options(case: Options) -> Options:
        low, high = case["vllm_importance_sampling_clip_min"], case["vllm_importance_sampling_clip_max"]
        return {"name": "grpo", "corrections": [{"name": correction, "max": high, "min": low or 0.0, **more}]}

    found = entries(
        "more_losses", loss_type="grpo", vllm_importance_sampling_mode=mode, importance_sampling_level=None, off_policy_mask_threshold=None
    )
    return losses(found, options, late=True)


def tis() -> Cell:
    return _vllm("token_truncate", "tis")


def sequence_tis() -> Cell:
    return _vllm("sequence_truncate", "sequence_tis")


def icepop() -> Cell:
    return _vllm("token_mask", "icepop")


def _masked(root: bool, **options: Any) -> list[float]:
    low, high = options["min"], options["max"]
    paper = Paper(advantages=credit.compared(), surrogate=papers.clip(0.2, factor=choices.masked_sequence(low, high, root=root)))
    return paper_gaps({"name": "grpo", "corrections": [{"name": "sequence_mask", **options}]}, paper, grouped(with_start(plays())))


def sequence_mask() -> Cell:
    return differs("it weighs what it keeps by start / sampler", _masked(False, min=0.55, max=1.25))


def geometric_mask() -> Cell:
    return reason("not in TRL, whose mask is of the product")


def off_policy_mask() -> Cell:
    def options(case: Options) -> Options:
        threshold = case["off_policy_mask_threshold"]
        return by_loss_type(case) | {"corrections": [{"name": "off_policy_mask", "threshold": threshold}]}

    return losses(entries("more_losses", off_policy_mask_threshold=0.05, use_vllm=None), options)


def kl_weighted() -> Cell:
    return losses(
        [*entries("losses", trainer="grpo", beta=0.04, use_bias_correction_kl=None), *entries("losses", trainer="grpo", beta=0.3)],
        by_loss_type,
    )


def kl_plain() -> Cell:
    return losses(entries("losses", trainer="grpo", use_bias_correction_kl=False), by_loss_type)


def kl_in_reward() -> Cell:
    found = entries("advantages", trainer="rloo", beta=0.05)
    options = {"kl_in": "reward", "kl_estimator": "k1", "baseline": "leave_one_out", "scale_rewards": "none"}
    return dataclasses.replace(
        advantages(found, lambda case: {"name": "grpo", **options, "beta": case["beta"]}), note="advantages of TRL's RLOO (float32)"
    )


def entropy_bonus() -> Cell:
    (means,) = entries("more_losses", loss_type="dapo", entropy_coef=0.01)
    same = losses([means], lambda case: {"name": "grpo", "normalization": "token_mean", "entropy_coef": case["entropy_coef"]})
    paper = Paper(advantages=credit.compared(), surrogate=papers.clip(0.2), entropy=0.01)
    gaps = paper_gaps({"name": "grpo", "entropy_coef": 0.01}, paper, grouped(plays()))
    return merged(dataclasses.replace(same, note="of a token mean"), verdict(gaps, note="differs: its bonus is always a token mean"))


def adaptive_entropy() -> Cell:
    """TRL's bonus is a token mean beside GRPO's mean over rollouts: put together of two losses of ours."""
    gaps = []
    entropy = float(np.concatenate([play.entropy for play in plays()]).mean())
    for entry in entries("more_losses", use_adaptive_entropy=True):
        target = entry["case"]["entropy_target"]
        adaptive = {"entropy_coef": 0.01, "entropy_target": target, "after": {"entropy": entropy}}
        means = {"name": "grpo", "normalization": "token_mean"}
        terms = [(1, {"name": "grpo"}), (1, means | adaptive), (-1, means)]
        gaps += summed_gaps(entry, terms, grouped(plays()))
    return verdict(gaps, note="coefficient and gate; its gate looks at the step before, the same here; else as above")


def top_entropy() -> Cell:
    (means,) = entries("more_losses", loss_type="dapo", top_entropy_quantile=0.5)
    options = {"name": "dapo", "top_entropy": 0.5}
    paper = Paper(advantages=credit.compared(), surrogate=papers.clip(0.2, 0.28), reduction="token_mean", mark=choices.undecided(0.5))
    entropies = np.concatenate([play.entropy for play in plays()])
    kept = (entropies >= np.median(entropies)).sum()
    gaps = paper_gaps(options, paper, grouped(plays()))
    scaled = loss_gaps(means, options, grouped(plays()), scale=len(entropies) / kept)
    return differs("it divides by all tokens, not by the kept", [*gaps, *scaled])


def _parts(case: Options) -> Options:
    weights = {f"f{index}": weight for index, weight in enumerate(case["reward_weights"])}
    return {
        "name": "grpo",
        "reward_weights": weights,
        "reward_aggregation": case["multi_objective_aggregation"],
        "scale_rewards": case["scale_rewards"],
    }


def normalize_then_sum() -> Cell:
    return advantages(entries("more_advantages", multi_objective_aggregation="normalize_then_sum"), _parts, bound=1e-12)


def scale_batch() -> Cell:
    weighed = advantages(
        entries("more_advantages", multi_objective_aggregation="sum_then_normalize", scale_rewards="batch"), _parts, bound=1e-12
    )
    return merged(
        weighed, dataclasses.replace(advantages(entries("advantages", trainer="grpo", scale_rewards="batch"), named("grpo")), note="")
    )


def leave_one_out() -> Cell:
    options = {"name": "grpo", "baseline": "leave_one_out", "scale_rewards": "none"}
    return dataclasses.replace(
        advantages(entries("advantages", trainer="rloo", beta=0.0), lambda case: options), note="advantages of TRL's RLOO (float32)"
    )


def delta() -> Cell:
    found = [entry for section in ("losses", "more_losses") for entry in stored()[section] if "delta" in entry["case"]]
    token = [entry for entry in found if "importance_sampling_level" not in entry["case"]]
    return losses(token, by_loss_type)


def overlong() -> Cell:
    return reason("a reward function in TRL, not an option")
