"""What an objective is: a config, a signal over groups and a pure loss over trained tokens. Objectives never divide.

The learner multiplies each loss by a weight whose denominator covers the whole step and all ranks, and alone reduces, accumulates,
clips and steps. So no objective can depend on how a step is cut into micro-batches, packings, ranks or orders. What a method takes from
the whole step (statistics of rewards, a quantile of entropies) it takes before the first backward pass, in `advantages` and `select`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from agentrl.examples import DataKind, Example
    from agentrl.teacher_prompt import TeacherPrompt

Normalization = Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
"""How token losses become one number.

sequence_mean: mean over rollouts of each rollout's token mean (GRPO, arXiv:2402.03300 eq. 3).
token_mean: mean over all trained tokens of the step (DAPO, arXiv:2503.14476 eq. 8).
sequence_sum: mean over rollouts of each rollout's sum (LUSPO, arXiv:2602.05261).
constant: sum over tokens / (rollouts x max_tokens) (Dr.GRPO, arXiv:2503.20783).
"""

Per = Literal["token", "rollout", "pair", "chosen_token", "gold_token"]
"""What a loss is one a. `chosen_token` and `gold_token` are [tokens] of which only those of chosen and of gold texts count, divided by
their number in the step."""


class ObjectiveConfig(BaseModel):
    """Base of every objective's own options; `name` is a `Literal` in each."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """A value model and how it is trained."""

    kind: Literal["head", "model"]
    """A linear head on the policy's own hidden states, or a model of its own that starts from the policy."""
    lr: float
    """Learning rate of a model of its own; a head takes the policy's."""
    warmup_steps: int
    """Steps at the start in which only the critic is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How the distributions of two vocabularies are compared, piece of text by piece of text (Boizard et al. 2024, arXiv:2402.12030)."""

    merge: Literal["observed", "bayesian"] = "observed"
    """Of a piece of several tokens: the distribution of its first token times the chances of the later ones, or that of its last token
    times the chances of the earlier ones."""
    hybrid: bool = False
    """Whether words that both vocabularies have are compared one by one, and only the others by their rank."""
    beta: float = 0.5
    """Of the divergence of the words that both have."""
    matched_weight: float | None = None
    """Of the words that both have; None: their share of the teacher's vocabulary."""
    unmatched_weight: float | None = None
    """Of the others; None: what is left to 1."""
    own_temperature: float = 1.0
    temperature: float = 1.0
    """Of the teacher."""
    skips_ends: bool = True
    """Leave end tokens out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What is asked of the run file's `teacher`."""

    logprobs: bool = False
    """Log-probs of the trained tokens, scored before the step: `MemberSignals.teacher_logprobs`, `TokenBatch.teacher_logprobs`."""
    divergence: float | None = None
    """beta of the generalized Jensen-Shannon divergence of each trained token: `TokenBatch.divergence`; 0 is KL(teacher | student), 1 is
    KL(student | teacher); None asks for none."""
    temperature: float | None = None
    """Of both distributions in the divergence, and of the teacher's log-probs; None is the one at which the run samples."""
    top_k: int | None = None
    """The divergence of the teacher's k most likely tokens and one bucket for all others; None takes the whole vocabulary."""
    support: Literal["teacher", "student"] = "teacher"
    """Whose k most likely tokens; a teacher on servers knows its own alone."""
    tail: bool = True
    """Whether all other tokens are a bucket; False renormalizes over the k."""
    who: Literal["others", "base", "live", "ema"] = "others"
    """The run file's teachers; or the policy as the run began, as it is now, or as a running mean of its weights."""
    ema_rate: float = 0.0
    """Of `ema`: teacher = (1 - rate) teacher + rate policy."""
    ema_every: int = 1
    """Steps between two such moves."""
    prompt: TeacherPrompt | None = None
    """What it reads in place of a rollout's prompt; None: the same."""
    words: Words | None = None
    """How distributions over its own vocabulary are compared with those over the policy's; None: the vocabularies are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityRatio:
    """Weights of a dataset's bad rows, by how much likelier their prompts are among the good ones: parts `weight` of each row."""

    least: float
    most: float
    rows: int
    """Of each label, on which the classifier of prompts is fitted before training, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an objective asks for beside rewards and the sampler's log-probs."""

    reference: bool = False
    """Log-probs of the trained tokens under a reference policy."""
    start: bool = False
    """Log-probs and entropies of the whole step under the learner as it begins the step: one more forward pass."""
    critic: Critic | None = None
    """Values of the states before each trained token."""
    entropy: bool = False
    """The entropy of each trained token's distribution enters the loss."""
    pairs: bool = False
    """Rollouts two by two; the loss is one a pair."""
    rival: float | None = None
    """Share of the reference in the policy that samples the second half of each group; None: the policy samples all of it."""
    judge: bool = False
    """The environment compares the rollouts of each pair."""
    group_size: int = 1
    """Smallest group in which the signal is defined."""
    reads_start: bool = True
    """Whether the loss reads the learner's log-probs of the start where a step has several optimizer steps."""
    passes: int = 1
    """How often a step's data is gone over."""
    minibatches: int = 1
    """Optimizer steps of each pass."""
    signal: bool = False
    """Groups in which all rewards are equal are not trained: others are played in their place."""
    by_part: bool = False
    """Rewards are made of the named parts of the scores: equal scores of other parts are not equal rewards."""
    by_turn: bool = False
    """Each turn is credited by itself: equal scores of other turns are not equal rewards."""
    output: Literal["tokens", "score", "labels"] = "tokens"
    """What the policy's head gives: log-probs of trained tokens; one number a text, at its last token; two logits a labelled token."""
    teacher: Teacher | None = None
    """Other models that the policy is to come near: `teacher` in the run file."""
    texts: bool = False
    """What each rollout says, as text: `MemberSignals.text`."""
    temperature: float | None = None
    """Of the policy's distribution as the loss reads it, where that is another than the one at which the run samples."""
    own_share: float = 0.0
    """Of an objective that learns from a dataset: share of a step's texts that the policy samples itself; above 0 the run is online."""
    rewards: bool = True
    """Whether rewards enter the loss; without them a `dataset` of prompts needs none."""
    mixes_rows: bool = False
    """`Objective.prepare` makes further texts of a step's rows, which nobody could have scored before."""
    density_ratio: DensityRatio | None = None
    """Weights of a dataset's rows that are made before training."""
    collision: bool = False
    """The loss reads log sum p^2 of each trained token's distribution."""
    logits: bool = False
    """The metrics read the mean logit of each trained token."""
    uniform: bool = False
    """The loss reads the mean over the vocabulary of each trained token's log-probs."""
    noise: float = 0.0
    """NEFTune's alpha: uniform noise on the embeddings of training forward passes (arXiv:2310.05914, algorithm 1); 0 adds none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """The trained tokens of one micro-batch, in the order in which they stand in the packed rows. All tensors on one device."""

    logprobs: torch.Tensor
    """[tokens] nats under the policy now, with gradient."""
    sampler_logprobs: torch.Tensor
    """[tokens] nats under the policy that sampled, at the same temperature."""
    advantages: torch.Tensor
    """[tokens]."""
    rollout: torch.Tensor
    """[tokens] int64: which rollout of this micro-batch a token belongs to; a rollout is never split over micro-batches."""
    num_rollouts: int
    rollout_advantages: torch.Tensor
    """[rollouts]: where advantages differ within a rollout, that of its first token."""
    reference_logprobs: torch.Tensor | None = None
    """[tokens] nats under the reference, where the objective needs one."""
    teacher_logprobs: torch.Tensor | None = None
    """[tokens] nats under the teacher, where the objective needs them; of several teachers, the weighted mean of their log-probs."""
    start_logprobs: torch.Tensor | None = None
    """[tokens] nats under the learner as it began the step; None where the step has one optimizer step, whose policy it then is."""
    entropy: torch.Tensor | None = None
    """[tokens] nats of the policy's distribution now, with gradient."""
    values: torch.Tensor | None = None
    """[tokens] the critic's value of the state before the token, with gradient."""
    start_values: torch.Tensor | None = None
    """[tokens] the same as the step began."""
    returns: torch.Tensor | None = None
    """[tokens] what the critic is to predict."""
    staleness: torch.Tensor | None = None
    """[tokens] optimizer steps done since the weights that sampled the token."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[tokens] each: what `select` chose over the whole step."""
    correct: torch.Tensor | None = None
    """[tokens] bool: no token was more likely."""
    mean_logits: torch.Tensor | None = None
    """[tokens] the mean logit over the vocabulary, without gradient: for metrics."""
    collision: torch.Tensor | None = None
    """[tokens] log sum p^2 of the policy's distribution, without gradient, where the objective needs it."""
    uniform_logprobs: torch.Tensor | None = None
    """[tokens] the mean of log-probs over the vocabulary, with gradient, where the objective needs it."""
    divergence: torch.Tensor | None = None
    """[tokens] between a teacher's distribution and the policy's, with gradient."""
    outputs: torch.Tensor | None = None
    """[tokens, k] of a head that gives no log-probs, with gradient."""
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[rollouts] each: numbers of a dataset's row; NaN where a row has none of that name."""
    rival: torch.Tensor | None = None
    """[rollouts] bool: sampled by the rival policy."""
    chosen: torch.Tensor | None = None
    """[pairs] int64: the preferred rollout of each pair."""
    rejected: torch.Tensor | None = None
    """[pairs] int64: the other one."""
    gold: torch.Tensor | None = None
    """[pairs] int64: the gold text of each pair, where pairs have one."""

    @property
    def start(self) -> torch.Tensor:
        """[tokens] nats under the learner as it began the step, without gradient."""
        return self.logprobs.detach() if self.start_logprobs is None else self.start_logprobs

    def sum_by_rollout(self, values: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [rollouts], differentiable."""
        return values.new_zeros(self.num_rollouts).index_add(0, self.rollout, values)

    def mean_by_rollout(self, values: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [rollouts], differentiable."""
        return self.sum_by_rollout(values) / self.lengths.clamp(min=1)

    @property
    def lengths(self) -> torch.Tensor:
        """[rollouts] trained tokens of each."""
        return self.sum_by_rollout(self.logprobs.new_ones(len(self.rollout)))

    @property
    def place(self) -> torch.Tensor:
        """[tokens] int64: which of its rollout's trained tokens each is, from 0; a rollout's tokens stand together."""
        ends = self.lengths.long().cumsum(0)
        starts = ends - self.lengths.long()
        return self.rollout.new_ones(len(self.rollout)).cumsum(0) - 1 - starts[self.rollout]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Something added to the loss that is not weighted as tokens are."""

    per: Per
    loss: torch.Tensor
    """[tokens], [rollouts] or [pairs], as `per` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a loss function returns, unreduced."""

    per: Per
    loss: torch.Tensor
    """[tokens], [rollouts] or [pairs], as `per` says."""
    terms: Mapping[str, torch.Tensor | Term] = field(default_factory=dict)
    """What is added to the loss beside it, under its name in the metrics: [tokens], weighted as token losses are, or a `Term`."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """[tokens], [rollouts] or [pairs] each, as `per` says: averaged over the whole step under their names."""
    token_metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """[tokens] each, whatever `per` says."""
    some_metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[tokens], [rollouts] or [pairs] each, NaN where there is none of it: averaged over what is left in the whole step."""
    lowest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Under a name that begins with `min_`, values whose smallest in the whole step is told."""
    highest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Under a name that begins with `max_`, values whose largest is."""
    weights: torch.Tensor | None = None
    """[tokens] correction weights that `loss` was multiplied by, for the effective sample size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSignals:
    """What a signal function sees of one rollout. Columns are [trained]; a rollout in which nothing was sampled has empty ones."""

    member: int
    """Index within its group as it was played."""
    rival: bool
    """Sampled by the rival policy, not by the one that is trained."""
    truncated: bool
    turn_rewards: np.ndarray
    """[turns] float64: what the environment gave for each turn alone; part of `rewards`. In the order in which turns ended, also those of
    several branches; turns that are not trained are left out, and what they were given belongs to the one before."""
    turn: np.ndarray
    """Index of the turn that sampled the token, among these."""
    sampler_logprobs: np.ndarray
    text: str = ""
    """What it says, where the objective asks for it: the assistant's messages, one a line."""
    start_logprobs: np.ndarray | None = None
    start_entropy: np.ndarray | None = None
    reference_logprobs: np.ndarray | None = None
    teacher_logprobs: np.ndarray | None = None
    values: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSignals:
    """What a signal function sees of one group; unscorable members are already left out."""

    rewards: np.ndarray
    """[members] float64."""
    reference_kl: np.ndarray | None = None
    """[members] float64: sum over trained tokens of sampler log-prob - reference log-prob, where the objective asks for it."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[members] float64 each: the named parts of the rewards, NaN where a member has none of that name."""
    members: tuple[MemberSignals, ...] = ()
    size: int = 0
    """Members that were played, unscorable ones included."""
    preferences: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """What the judge said, by places of the two members: the probability that the first is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What a signal function gives a group, where it is more than an advantage a member."""

    advantages: np.ndarray | Sequence[np.ndarray]
    """[members] float64, or [trained] for each member."""
    returns: Sequence[np.ndarray] | None = None
    """[trained] for each member: what the critic is to predict."""
    trained: np.ndarray | None = None
    """[members] bool: whose tokens the loss counts; None: everybody's."""
    pairs: Sequence[tuple[int, ...]] = ()
    """Places of (chosen, rejected) members, or of (chosen, rejected, gold) ones; a member is in one pair at most."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[members] each: what the loss is to know of each member beside its advantage: `TokenBatch.parts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """The trained tokens of a whole step, as `select` sees them; the same on every rank. All [tokens] float64 but `rollout`."""

    advantages: np.ndarray
    sampler_logprobs: np.ndarray
    start_logprobs: np.ndarray
    start_entropy: np.ndarray
    rollout: np.ndarray
    """Int64, from 0."""
    seed: tuple[int, ...]
    """Of this step, for those that draw; what `numpy.random.default_rng` takes."""


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
