"""BCO: a classifier of good and bad texts, whose logit is the log-ratio of policy and reference, shifted by its running mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import DensityRatio, Needs
from agentrl.objectives.paired import Positive
from agentrl.objectives.unpaired import label_metrics, labels_as_credit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import Credit, GroupSignals


class BCOConfig(ObjectiveConfig):
    """Options of BCO."""

    name: Literal["bco"] = "bco"
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""
    delta: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """The shift of the first step; after it, the mean of the rewards of all texts of the steps before."""
    density_ratio: bool = False
    """Weigh bad texts by how much likelier their prompts are among the good ones, as a classifier of prompts sees it that is fitted before
    training; for good and bad texts of different prompts."""
    min_density_ratio: Positive = 0.5
    """Smallest such weight."""
    max_density_ratio: Positive = 10.0
    """Largest such weight."""
    density_ratio_rows: Annotated[int, Field(ge=2)] = 1024
    """Rows of each label that the classifier is fitted on, at most."""

    @model_validator(mode="after")
    def _consistent(self) -> BCOConfig:
        if self.min_density_ratio > self.max_density_ratio:
            raise ValueError(f"min_density_ratio={self.min_density_ratio} must not exceed max_density_ratio={self.max_density_ratio}")
        if not self.density_ratio:
            for name in ("min_density_ratio", "max_density_ratio", "density_ratio_rows"):
                if getattr(self, name) != BCOConfig.model_fields[name].default:
                    raise ValueError(f"{name} has no effect without density_ratio: set it, or remove {name}")
        return self


def labelled(groups: Sequence[GroupSignals], config: BCOConfig) -> list[Credit]:
    """Labels as advantages."""
    return labels_as_credit(groups)


def classifier_losses(batch: TokenBatch, config: BCOConfig) -> Losses:
    """-log sigmoid(r - delta) of a good text, -log sigmoid(delta - r) of a bad one, r = beta log(policy / reference) of the text.

    delta is what the learner has adapted: the mean of r over all texts of earlier steps. TRL's takes in the step's own texts first, for
    which they would have to be scored once more; on the first step, where r is 0 everywhere, both are 0.

    Args:
        batch: logprobs, reference_logprobs, mean_logits [tokens]; rollout_advantages, 1 for good texts; parts `balance`, and `weight`, a
            row's factor, where it has one.
        config: beta, delta as it is in force.

    Returns: loss [rollouts]. Metrics: `rewards/mean`, `rewards/margins`, `weights/mean` where there are weights, and of good and bad texts
    apart `{rewards,logps,logits}/{chosen,rejected}`; `delta` is the learner's.

    Source: Jung et al. 2024, arXiv:2404.04656.
    """
    from torch.nn.functional import softplus

    assert batch.reference_logprobs is not None, "texts are measured against a reference"
    rewards = config.beta * batch.sum_by_rollout(batch.logprobs - batch.reference_logprobs)
    shifted = rewards - config.delta
    loss = softplus(-shifted).where(batch.rollout_advantages > 0, softplus(shifted))
    metrics, some = label_metrics(batch, rewards)
    if "weight" in batch.parts:
        weights = batch.parts["weight"].nan_to_num(1.0)
        loss = weights * loss
        metrics["weights/mean"] = weights
    return Losses(per="rollout", loss=loss, metrics=metrics, some_metrics=some)


def running_mean(config: BCOConfig, state: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """The mean over one step more; a step that trained nothing changes nothing."""
    if "rewards/mean" not in metrics:
        return dict(state)
    before, new = state["delta_texts"], metrics["learner/rollouts"]
    mean = (before * state["delta"] + new * metrics["rewards/mean"]) / (before + new)
    return {"delta": mean, "delta_texts": before + new}


def _needs(config: BCOConfig) -> Needs:
    ratio = DensityRatio(least=config.min_density_ratio, most=config.max_density_ratio, rows=config.density_ratio_rows)
    return Needs(reference=True, logits=True, density_ratio=ratio if config.density_ratio else None)


BCO = Objective(
    name="bco",
    config=BCOConfig,
    advantages=labelled,
    loss=classifier_losses,
    needs=_needs,
    state=lambda config: {"delta": config.delta, "delta_texts": 0.0},
    in_force=lambda config, state: config.model_copy(update={"delta": state["delta"]}),
    next_state=running_mean,
    data="unpaired",
    formula=(
        "good: -log sigmoid(r - delta); bad: -w log sigmoid(delta - r); mean over texts\n"
        "r = beta log(policy / reference) of the text; delta = mean of r over the steps before; w = 1, or a density ratio of prompts"
    ),
    source="Jung et al. 2024, arXiv:2404.04656",
    reads=("weight",),
    summary="Learns from single texts with a label, as a classifier of them.",
    refused=("min_density_ratio, max_density_ratio or density_ratio_rows without density_ratio: they would have no effect",),
)
