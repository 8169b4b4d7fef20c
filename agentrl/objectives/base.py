"""What an objective is: a config, a signal over groups and a pure loss over trained tokens. Objectives never divide.

The learner multiplies each loss by a weight whose denominator covers the whole step and all ranks, and alone reduces, accumulates,
clips and steps. So no objective can depend on how a step is cut into micro-batches, packings, ranks or orders. What a method takes from
the whole step (statistics of rewards, a quantile of entropies) it takes before the first backward pass, in `advantages` and `select`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from agentrl.objectives.needs import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from agentrl.examples import DataKind, Example
    from agentrl.objectives.losses import Losses, Normalization, TokenBatch
    from agentrl.objectives.signals import Credit, GroupSignals, StepColumns


class ObjectiveConfig(BaseModel):
    """Base of every objective's own options; `name` is a `Literal` in each."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str


def _never(config: Any) -> bool:
    return False


def _nothing(config: Any) -> Needs:
    return Needs()


def _unchanged(config: Any, state: Mapping[str, float]) -> Any:
    return config


def _no_state(config: Any) -> dict[str, float]:
    return {}


def _kept(config: Any, state: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    return dict(state)


def _always(config: Any) -> Normalization:
    return "sequence_mean"


def _scores(groups: Sequence[GroupSignals], config: Any) -> list[np.ndarray]:
    return [group.rewards for group in groups]


def _as_they_are(examples: Sequence[Example], config: Any) -> Sequence[Example]:
    return examples


def _no_columns(columns: StepColumns, config: Any) -> dict[str, np.ndarray]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One row of the registry: who is compared with whom, and what loss follows."""

    name: str
    config: type[ObjectiveConfig]
    advantages: Callable[[Sequence[GroupSignals], Any], Sequence[np.ndarray | Credit]]
    """All scorable groups of the step and the config -> [members] float64 a group, or a `Credit`. It sees the whole step: batch
    statistics are exact."""
    loss: Callable[[TokenBatch, Any], Losses]
    needs: Callable[[Any], Needs] = _nothing
    normalization: Callable[[Any], Normalization] = _always
    rewards: Callable[[Sequence[GroupSignals], Any], Sequence[np.ndarray]] = _scores
    """The rewards that advantages are made of, [members] float64 a group: the scores as they are, or shaped."""
    select: Callable[[StepColumns, Any], dict[str, np.ndarray]] = _no_columns
    """The whole step's tokens -> further [tokens] columns for the loss; called only where `needs` says `start`."""
    zero_advantage_is_zero_loss: Callable[[Any], bool] = _never
    """Whether loss and gradient of a rollout with advantage exactly 0 are identically 0, so that the learner may leave out its forward and
    backward. The rollout stays in every denominator, and counts as 0 in the objective's metrics."""
    state: Callable[[Any], dict[str, float]] = _no_state
    """What the objective adapts while it trains, at its start; kept in checkpoints."""
    in_force: Callable[[Any, Mapping[str, float]], Any] = _unchanged
    """The config with the state's values in place: what the other functions of a step are given."""
    next_state: Callable[[Any, Mapping[str, float], Mapping[str, float]], dict[str, float]] = _kept
    """Config, state and a step's metrics -> the next step's state."""
    data: DataKind | None = None
    """The rows of a dataset that it learns from; None: it learns from rollouts, online."""
    reads: Sequence[str] = ()
    """The columns of numbers beside a row's texts that its loss reads, of `margin` and `weight`; a run tells of idle ones."""
    prepare: Callable[[Sequence[Example], Any], Sequence[Example]] = _as_they_are
    """All examples of an offline step -> the same with whatever texts the step needs beside them (KTO's mismatched completions)."""
    formula: str = ""
    """The loss in one or a few lines of plain text."""
    source: str = ""
    """Paper, arXiv id, equation."""
    summary: str = ""
    refused: Sequence[str] = ()
    """Combinations of options that are refused, and why, a sentence each."""
    paper: Mapping[str, str] = field(default_factory=dict)
    """The paper's value of an option, where it says one, by the option's name."""

    def is_offline(self, config: Any) -> bool:
        """Whether it learns under these options from a dataset alone, and nothing is sampled."""
        return self.data is not None and self.needs(config).own_share == 0
