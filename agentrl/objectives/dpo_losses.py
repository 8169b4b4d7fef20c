"""The losses of DPO and its relatives, one a pair, of log-ratios that are already summed; `dpo.py` has the options.

h is log(policy / reference) of a whole text, s its score (h itself, unless another f-divergence than the reverse KL holds the policy to the
reference), D = s_w - s_l, w the chosen text and l the rejected one, b is beta, e the label smoothing, ls the log of the sigmoid. Label
smoothing turns -ls(x) into -(1 - e) ls(x) - e ls(-x), where it says so.

| loss | formula | source |
|---|---|---|
| sigmoid | -ls(b D), smoothed | arXiv:2305.18290, eq. 7; e: Mitchell 2023, "A note on DPO with noisy preferences" |
| hinge | max(0, 1 - b D) | SLiC, arXiv:2305.10425; RSO, arXiv:2309.06657 |
| ipo | (s_w / len(w) - s_l / len(l) - 1 / (2 b))^2, or without the lengths | arXiv:2310.12036, eq. 17 |
| exo_pair | sig(b D) (ls(b D) - log(1 - e)) + sig(-b D) (ls(-b D) - log e) | arXiv:2402.00856, eq. 16 |
| nca_pair | -ls(b h_w) - ls(-b h_w) / 2 - ls(-b h_l) / 2 | arXiv:2402.05369, of two texts |
| bco_pair | -ls(b h_w) - ls(-b h_l) | arXiv:2404.04656, without its shift |
| robust | (-(1 - e) ls(b D) + e ls(-b D)) / (1 - 2 e) | arXiv:2403.00409 |
| sppo_hard | (h_w - 1 / (2 b))^2 + (h_l + 1 / (2 b))^2 | arXiv:2405.00675, eq. 4.7 with P of 1 and 0 |
| aot | -ls(b d), smoothed, d the k-th smallest log p_w - log p_l of the step - the k-th smallest of the reference | arXiv:2406.05882 |
| aot_unpaired | -ls(b d), smoothed, d the k-th smallest h_w of the step - the k-th smallest h_l | arXiv:2406.05882 |
| apo_zero | 1 - sig(b h_w) + sig(b h_l) | arXiv:2408.06266, eq. 7 |
| apo_down | sig(b h_w) + 1 - sig(b (h_w - h_l)) | arXiv:2408.06266, eq. 8 |
| discopop | -ls(x) (1 - g) + exp(-x) g, x = b D, g = sig(x / tau) | arXiv:2406.08414, eq. 5 |
| sigmoid_norm | -ls(b (s_w / len(w) - s_l / len(l))), smoothed | arXiv:2411.15124 |
| sft | -log p of each chosen token, mean over all of the step | arXiv:2411.10442 |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agentrl.objectives.paired import smoothed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from agentrl.objectives.dpo import DPOConfig

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

MAX_EXPONENT = 80.0
"""Of a score's exponential: exp(80) still has a square's root in float32. Beyond it a score has no slope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """What the losses of a micro-batch's pairs are made of, [pairs] each."""

    ratio_w: torch.Tensor
    """h of the chosen text."""
    ratio_l: torch.Tensor
    score_w: torch.Tensor
    """s of the chosen text."""
    score_l: torch.Tensor
    length_w: torch.Tensor
    """Trained tokens of the chosen text."""
    length_l: torch.Tensor
    policy: torch.Tensor
    """log p of the chosen text - of the rejected one."""
    matched: torch.Tensor | None = None
    """The reference's difference of the same rank as `policy` in the step, for `aot`."""
    partner_w: torch.Tensor | None = None
    """h of the rejected text of the chosen one's rank in the step, for `aot_unpaired`; a constant, as `partner_l` is."""
    partner_l: torch.Tensor | None = None
    """h of the chosen text of the rejected one's rank."""

    @property
    def difference(self) -> torch.Tensor:
        """D."""
        return self.score_w - self.score_l

    @property
    def mean_difference(self) -> torch.Tensor:
        """D of scores a token."""
        return self.score_w / self.length_w - self.score_l / self.length_l


def scored(ratios: torch.Tensor, divergence: Divergence, alpha: float) -> torch.Tensor:
    """f'(policy / reference) of the divergence f, up to what makes it 0 where the two agree.

    reverse_kl: h. forward_kl: 1 - exp(-h). js_divergence: log 2 + ls(h). alpha_divergence: (exp((a - 1) h) - 1) / (a - 1), with a = 1 the
    reverse KL and a = 0 the forward one; the paper's alpha is 1 - a.

    Source: Wang et al. 2023, arXiv:2309.16240, table 2.
    """
    from torch.nn.functional import logsigmoid

    if divergence == "forward_kl":
        return -(-ratios).clamp(max=MAX_EXPONENT).expm1()
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(ratios)
    if divergence == "alpha_divergence" and alpha != 1:
        return ((alpha - 1) * ratios).clamp(max=MAX_EXPONENT).expm1() / (alpha - 1)
    return ratios


def sigmoid(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """DPO itself."""
    return smoothed(config.beta * margins.difference, config.label_smoothing)


def hinge(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """SLiC and RSO."""
    return (1 - config.beta * margins.difference).relu()


def ipo(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """IPO."""
    difference = margins.difference if config.ipo_sums else margins.mean_difference
    return (difference - 1 / (2 * config.beta)).square()


def exo_pair(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """KL of the policy's own preference from the smoothed label."""
    from torch.nn.functional import logsigmoid

    logits, e = config.beta * margins.difference, config.label_smoothing
    return logits.sigmoid() * (logsigmoid(logits) - math.log1p(-e)) + (-logits).sigmoid() * (logsigmoid(-logits) - math.log(e))


def nca_pair(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """NCA with a reward of 1 for the chosen text and of 0 for the rejected one at temperature 0."""
    from torch.nn.functional import softplus

    chosen, rejected = config.beta * margins.ratio_w, config.beta * margins.ratio_l
    return softplus(-chosen) + 0.5 * softplus(chosen) + 0.5 * softplus(rejected)


def bco_pair(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """Binary classification of both texts, each by itself."""
    from torch.nn.functional import softplus

    return softplus(-config.beta * margins.ratio_w) + softplus(config.beta * margins.ratio_l)


def robust(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """rDPO: the expected loss is that of right labels."""
    from torch.nn.functional import softplus

    logits, e = config.beta * margins.difference, config.label_smoothing
    return ((1 - e) * softplus(-logits) - e * softplus(logits)) / (1 - 2 * e)


def sppo_hard(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """SPPO, with labels in the place of a preference model's chances."""
    half = 0.5 / config.beta
    return (margins.ratio_w - half).square() + (margins.ratio_l + half).square()


def aot(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """AOT: the ranks are of the whole step and so is the partner, which is the reference's and has no gradient."""
    assert margins.matched is not None, "the signal matches differences by rank"
    return smoothed(config.beta * (margins.policy - margins.matched), config.label_smoothing)


def aot_unpaired(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """AOT of margins between chosen and rejected texts of one rank, which need not be of one row.

    The partner is in another micro-batch: it is the constant that it was as the step began. Each match is seen from both its ends, so
    that both have their slope, and its value is counted at the chosen end alone.
    """
    assert margins.partner_w is not None, "the signal matches log-ratios by rank"
    assert margins.partner_l is not None, "the signal matches log-ratios by rank"
    seen = smoothed(config.beta * (margins.ratio_w - margins.partner_w), config.label_smoothing)
    other = smoothed(config.beta * (margins.partner_l - margins.ratio_l), config.label_smoothing)
    return seen + (other - other.detach())


def apo_zero(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """APO where chosen texts are better than the policy's own."""
    return (-config.beta * margins.ratio_w).sigmoid() + (config.beta * margins.ratio_l).sigmoid()


def apo_down(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """APO where they are worse."""
    return (config.beta * margins.ratio_w).sigmoid() + (-config.beta * (margins.ratio_w - margins.ratio_l)).sigmoid()


def discopop(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """The loss that a language model found; its exponential is taken together with the gate, which it cannot outgrow."""
    from torch.nn.functional import logsigmoid, softplus

    logits = config.beta * margins.difference
    gate = logits / config.discopop_tau
    return softplus(-logits) * (-gate).sigmoid() + (logsigmoid(gate) - logits).exp()


def sigmoid_norm(margins: Margins, config: DPOConfig) -> torch.Tensor:
    """DPO of scores a token."""
    return smoothed(config.beta * margins.mean_difference, config.label_smoothing)


LOSSES: Mapping[str, Callable[[Margins, DPOConfig], torch.Tensor]] = {
    one.__name__: one
    for one in (
        *(sigmoid, hinge, ipo, exo_pair, nca_pair, bco_pair, robust, sppo_hard, aot, aot_unpaired),
        *(apo_zero, apo_down, discopop, sigmoid_norm),
    )
}
"""All but `sft`, which is one a token."""

FORMULA = """sigmoid: -ls(b D), D = s_w - s_l
hinge: max(0, 1 - b D)
ipo: (s_w/|w| - s_l/|l| - 1/(2b))^2, or (D - 1/(2b))^2 with ipo_sums
exo_pair: sig(b D) (ls(b D) - log(1-e)) + sig(-b D) (ls(-b D) - log e)
nca_pair: -ls(b h_w) - ls(-b h_w)/2 - ls(-b h_l)/2
bco_pair: -ls(b h_w) - ls(-b h_l)
robust: (-(1-e) ls(b D) + e ls(-b D)) / (1-2e)
sppo_hard: (h_w - 1/(2b))^2 + (h_l + 1/(2b))^2
aot: -ls(b d), d = k-th smallest log p(w) - log p(l) of the step - k-th smallest of the reference
aot_unpaired: -ls(b d), d = k-th smallest h_w of the step - k-th smallest h_l
apo_zero: 1 - sig(b h_w) + sig(b h_l)
apo_down: sig(b h_w) + 1 - sig(b (h_w - h_l))
discopop: -ls(x) (1-g) + exp(-x) g, x = b D, g = sig(x/tau)
sigmoid_norm: -ls(b (s_w/|w| - s_l/|l|))
sft: -log p of each chosen token, mean over all of the step
all others: mean over pairs; with e, -ls(x) is -(1-e) ls(x) - e ls(-x) in sigmoid, sigmoid_norm, aot and aot_unpaired
h = log(policy / reference) of a text, w chosen, l rejected, |w| tokens, b = beta, e = label_smoothing, ls = log sig
s = h (reverse_kl), 1 - exp(-h) (forward_kl), log 2 + ls(h) (js_divergence), (exp((a-1) h) - 1) / (a-1) (alpha_divergence)"""
"""All of them, for `agentrl objectives show dpo`."""
