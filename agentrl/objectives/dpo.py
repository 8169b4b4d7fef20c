"""Direct preference optimization of a dataset's pairs, with the losses of `dpo_losses.py`, one or several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.dpo_losses import FORMULA, LOSSES, Divergence, Margins, scored
from agentrl.objectives.dpo_ranks import RANKED, ranked_pairs
from agentrl.objectives.losses import Losses, Term
from agentrl.objectives.needs import Needs
from agentrl.objectives.paired import NotNegative, Positive, Smoothing, of_pairs, reward_metrics, token_metrics

if TYPE_CHECKING:
    import torch

    from agentrl.objectives.losses import TokenBatch

Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "robust",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
]
OF_SCORES = frozenset({"sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"})
"""Losses of D or of scores a token, which a divergence shapes."""
OF_DIFFERENCES = OF_SCORES | {"aot", "sft"}
"""Losses that make sense without a reference: nothing in them is a log-ratio by itself."""
SMOOTHED = frozenset({"sigmoid", "exo_pair", "robust", "aot", "aot_unpaired", "sigmoid_norm"})


class DPOConfig(ObjectiveConfig):
    """Options of DPO."""

    name: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    """How strongly the policy is held to the reference; of `ipo` and `sppo_hard`, 1 / (2 beta) is the margin to reach."""
    loss: Loss | list[str] = "sigmoid"
    """Which loss of a pair, or a list of several that are added up (MPO); `agentrl objectives show dpo` has all formulas."""
    loss_weights: list[Positive] | None = None
    """Of several losses, what each is multiplied by; null: 1 each."""
    f_divergence: Divergence = "reverse_kl"
    """What holds the policy to the reference: each log-ratio h becomes the score f'(exp(h))."""
    f_alpha: NotNegative = 0.5
    """Of `alpha_divergence`: 1 is the reverse KL, 0 the forward one."""
    label_smoothing: Smoothing = 0.0
    """The chance that a pair's label is wrong, for sigmoid, sigmoid_norm, robust, exo_pair, aot and aot_unpaired."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much the tokens count by which a text is longer than the other one of its pair (LD-DPO); 1: like all others."""
    weighting: bool = False
    """Multiply a pair's loss by how likely the policy is to have written both texts (WPO)."""
    reference_free: bool = False
    """Measure against no reference, as if it found all texts equally likely: log-probs in the place of log-ratios."""
    discopop_tau: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Of `discopop`: the smaller, the sharper it changes from the logistic loss to the exponential one."""
    ipo_sums: bool = False
    """Of `ipo`: take sums of log-ratios, as the paper's equation is written, and not means over a text's tokens. The means are TRL's, which
    has it from the paper's authors that their results are of means; the margin to reach is then the same for texts of any length."""

    @property
    def losses(self) -> tuple[str, ...]:
        """One or several."""
        return (self.loss,) if isinstance(self.loss, str) else tuple(self.loss)

    @model_validator(mode="after")
    def _consistent(self) -> DPOConfig:
        if found := [*_wrong_lists(self), *_without_effect(self), *_contradictions(self)]:
            raise ValueError("; ".join(found))
        return self


def _wrong_lists(config: DPOConfig) -> list[str]:
    names, found = config.losses, []
    if unknown := [name for name in names if name not in get_args(Loss)]:
        found.append(f"loss names {', '.join(map(repr, unknown))}; a list of losses may name {', '.join(get_args(Loss))}")
    if not names:
        found.append("loss is an empty list: name one or more losses")
    if len(set(names)) < len(names):
        found.append(f"loss names {max(names, key=names.count)} twice: name it once, with the sum of the weights")
    if config.loss_weights is not None and len(config.loss_weights) != len(names):
        found.append(f"loss_weights has {len(config.loss_weights)} numbers for {len(names)} losses ({', '.join(names)}): give one each")
    return found


def _without_effect(config: DPOConfig) -> list[str]:
    """Options that no loss of the list reads."""
    names, fields = set(config.losses), DPOConfig.model_fields
    found = []
    if config.label_smoothing > 0 and not names & SMOOTHED:
        found.append(f"label_smoothing has no effect on {', '.join(config.losses)}: remove it, or take {', '.join(sorted(SMOOTHED))}")
    if config.f_alpha != fields["f_alpha"].default and config.f_divergence != "alpha_divergence":
        found.append(f"f_alpha belongs to f_divergence alpha_divergence, which is {config.f_divergence}: remove one of the two")
    if config.discopop_tau != fields["discopop_tau"].default and "discopop" not in names:
        found.append(f"discopop_tau belongs to loss discopop, which is {', '.join(config.losses)}: remove it")
    if config.ipo_sums and "ipo" not in names:
        found.append(f"ipo_sums belongs to loss ipo, which is {', '.join(config.losses)}: remove it")
    if names == {"sft"}:
        found.append("loss sft alone compares nothing: add another loss, or take the objective sft with the chosen texts")
    return found


def _contradictions(config: DPOConfig) -> list[str]:
    names, found = set(config.losses), []
    if "exo_pair" in names and config.label_smoothing == 0:
        found.append("loss exo_pair needs label_smoothing > 0, the log of which it takes: its paper has 1e-3")
    if config.weighting and names & RANKED:
        found.append(f"weighting weighs pairs, and {', '.join(sorted(names & RANKED))} compares texts of other rows: remove one of the two")
    if config.f_divergence != "reverse_kl" and (others := names - OF_SCORES - {"sft"}):
        found.append(
            f"f_divergence {config.f_divergence} shapes scores that {', '.join(sorted(others))} does not read: leave it reverse_kl"
        )
    if config.reference_free and (others := names - OF_DIFFERENCES):
        found.append(
            f"reference_free has no meaning for {', '.join(sorted(others))}, where a log-ratio stands by itself: remove one of the two"
        )
    if config.reference_free and config.f_divergence != "reverse_kl":
        found.append(f"f_divergence {config.f_divergence} measures the policy against a reference, and reference_free has none")
    return found


def margins_of(batch: TokenBatch, config: DPOConfig) -> tuple[Margins, tuple[torch.Tensor, torch.Tensor]]:
    """The sums of a micro-batch's pairs, and log p of the chosen and of the rejected texts."""
    import torch

    lengths = of_pairs(batch, batch.lengths)
    now = batch.logprobs
    reference = torch.zeros_like(now) if config.reference_free else batch.reference_logprobs
    assert reference is not None, "pairs are measured against a reference"
    if config.ld_alpha < 1:
        shared = torch.empty_like(batch.lengths)
        shared[batch.chosen] = shared[batch.rejected] = torch.minimum(*lengths)
        weights = torch.full_like(now, config.ld_alpha).masked_fill(batch.place < shared[batch.rollout], 1.0)
        now, reference = weights * now, weights * reference
    ratios = of_pairs(batch, batch.sum_by_rollout(now - reference))
    logps = of_pairs(batch, batch.sum_by_rollout(now))
    scores = [scored(one, config.f_divergence, config.f_alpha) for one in ratios]
    partner = of_pairs(batch, batch.parts["partner"]) if "partner" in batch.parts else (None, None)
    margins = Margins(
        ratio_w=ratios[0],
        ratio_l=ratios[1],
        score_w=scores[0],
        score_l=scores[1],
        length_w=lengths[0],
        length_l=lengths[1],
        policy=logps[0] - logps[1],
        matched=of_pairs(batch, batch.parts["matched"])[0] if "matched" in batch.parts else None,
        partner_w=partner[0],
        partner_l=partner[1],
    )
    return margins, logps


def policy_weights(batch: TokenBatch) -> torch.Tensor:
    """[pairs] w_w w_l, w = exp(mean over tokens of log p_t - log sum p^2): how likely the policy wrote both, as against any other token.

    Source: Zhou et al. 2024, arXiv:2406.11827, eq. 2, with weights aligned to what the policy would sample.
    """
    assert batch.collision is not None, "weighting asks for the chance that two draws are equal"
    weights = batch.mean_by_rollout(batch.logprobs.detach() - batch.collision).exp()
    chosen, rejected = of_pairs(batch, weights)
    return chosen * rejected


def pair_losses(batch: TokenBatch, config: DPOConfig) -> Losses:
    """The weighted sum of the losses of each pair; `sft` is a term beside it, of chosen tokens and not weighted by WPO.

    Args:
        batch: logprobs, reference_logprobs, correct, mean_logits, collision [tokens]; chosen, rejected [pairs]; parts `matched`, `partner`.
        config: all of it.

    Returns: loss [pairs], term `sft` of chosen tokens. Metrics: `rewards/{chosen,rejected,margins,accuracies}` and
    `logps/{chosen,rejected}` of pairs (the tokens beyond the shorter text as `ld_alpha` has them), `logits/{chosen,rejected}` and
    `mean_token_accuracy` of tokens, `weights/mean` with weighting, and of several losses `loss/<name>`, weighted.

    Source: those of `dpo_losses`; several: MPO, Wang et al. 2024, arXiv:2411.10442; ld_alpha: Liu et al. 2024, arXiv:2409.06411.
    """
    margins, logps = margins_of(batch, config)
    factors = dict(zip(config.losses, config.loss_weights or [1.0] * len(config.losses), strict=True))
    metrics = reward_metrics(config.beta * margins.ratio_w, config.beta * margins.ratio_l, logps)
    parts = {name: factor * LOSSES[name](margins, config) for name, factor in factors.items() if name != "sft"}
    if config.weighting:
        weights = policy_weights(batch)
        parts = {name: weights * part for name, part in parts.items()}
        metrics["weights/mean"] = weights
    if len(parts) > 1:
        metrics |= {f"loss/{name}": part.detach() for name, part in parts.items()}
    terms = {"sft": Term(per="chosen_token", loss=-factors["sft"] * batch.logprobs)} if "sft" in factors else {}
    loss = sum(parts.values(), margins.ratio_w.new_zeros(len(margins.ratio_w)))
    return Losses(per="pair", loss=loss, terms=terms, metrics=metrics, some_metrics=token_metrics(batch))


def _needs(config: DPOConfig) -> Needs:
    return Needs(
        reference=not config.reference_free,
        pairs=True,
        start=bool(RANKED & set(config.losses)),
        collision=config.weighting,
        logits=True,
    )


DPO = Objective(
    name="dpo",
    config=DPOConfig,
    advantages=ranked_pairs,
    loss=pair_losses,
    needs=_needs,
    data="preference",
    formula=FORMULA,
    source=(
        "Rafailov et al. 2023, arXiv:2305.18290, eq. 7; losses: arXiv:2305.10425, arXiv:2310.12036, arXiv:2402.00856, arXiv:2402.05369, "
        "arXiv:2404.04656, arXiv:2403.00409, arXiv:2405.00675, arXiv:2406.05882, arXiv:2408.06266, arXiv:2406.08414, arXiv:2411.15124; "
        "f-divergences: arXiv:2309.16240; several losses: arXiv:2411.10442; ld_alpha: arXiv:2409.06411; weighting: arXiv:2406.11827"
    ),
    summary="Learns from pairs of a chosen and a rejected text, against a reference; fifteen losses, alone or added up.",
    refused=(
        "loss exo_pair without label_smoothing: it takes the log of it",
        "label_smoothing, f_alpha, discopop_tau or ipo_sums with losses that do not read them: they would have no effect",
        "f_divergence with a loss of log-ratios by themselves or of ranks: nothing in it is a score",
        "weighting with aot or aot_unpaired: they compare texts of different rows, and have no pair to weigh",
        "reference_free with a loss in which a log-ratio stands by itself, or with an f-divergence: there is nothing to measure from",
        "loss sft alone: that is the objective sft",
    ),
    paper={"beta": "0.1"},
)
