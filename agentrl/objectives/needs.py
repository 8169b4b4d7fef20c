"""What an objective asks for beside rewards and the sampler's log-probs: other models, further columns, passes over the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from agentrl.teacher_prompt import TeacherPrompt


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
    writes: bool = False
    """It writes the completions of a dataset's prompts, which the policy learns from in the place of the dataset's own."""


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
