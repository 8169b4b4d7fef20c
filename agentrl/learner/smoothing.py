"""Mean log-probs over the vocabulary, for label smoothing (Szegedy et al. 2016, arXiv:1512.00567, sec. 7), without a row of logits.

The mean of log-probs is the mean of logits less the log of their normalizer, and a target's log-prob is its own logit less the same:

    mean of log p = log p(target) + (mean of logits - logit of the target)

Logits are linear in the head's rows, so that the mean of logits is the hidden state's product with the mean row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from agentrl.learner.logprobs import Head
    from agentrl.learner.projection import Projection


def check_smoothing(head: Head) -> None:
    """Raise `ConfigError` for a head whose logits are not linear."""
    if head.softcap is not None:
        raise ConfigError(
            f"objective.label_smoothing needs logits that are linear in the head's weights, and this model caps them at {head.softcap:g}: "
            "set it to 0"
        )


def uniform_logprobs(own: Projection, targets: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """[positions] mean over the vocabulary of log-probs, in nats, with gradient.

    Args:
        own: hidden states and the head.
        targets: [positions] int64.
        logprobs: [positions] of the targets.
    """
    kind = logprobs.dtype
    row = own.weight.mean(0, dtype=kind) - own.weight.index_select(0, targets).to(kind)
    gap = (own.hidden.to(kind) * row).sum(-1)
    if own.bias is not None:
        gap = gap + own.bias.to(kind).mean() - own.bias.index_select(0, targets).to(kind)
    return logprobs + gap * (own.head.scale / own.head.temperature)
