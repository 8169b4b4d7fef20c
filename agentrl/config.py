"""The run file's schema: strict, immutable, and free of torch, so that it loads in milliseconds anywhere.

An unknown key is an error that names the nearest key; values are validated at load, with file, key and value in the message.
Objectives are validated by their own configs, found by name in the open registry (`agentrl.objectives`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from agentrl.config_base import Config, NonNegative, Positive, Seconds, Share, urls
from agentrl.config_data import DataConfig, DatasetShareConfig, EvaluationConfig, HubConfig
from agentrl.config_engine import EngineConfig, SamplingConfig
from agentrl.config_learner import LearnerConfig
from agentrl.errors import ConfigError

DEFAULT_STEPS = 100
"""Optimizer steps of an online run that does not say how many."""


class RolloutConfig(Config):
    """The generator side: processes, deadlines and what is tolerated."""

    processes: Positive = 1
    """Rollout processes; each plays many episodes at once."""
    env_workers: Positive = 2
    """Killable processes, for each rollout process, in which environments and rewards run."""
    score_timeout_s: Seconds = 30.0
    """Wall clock of one scoring call; past it the worker is killed and the rollout is unscorable."""
    tool_timeout_s: Seconds = 30.0
    """Wall clock of one tool call."""
    episode_timeout_s: Seconds = 600.0
    """Wall clock of one episode."""
    max_tool_output_chars: Positive = 8192
    """A longer tool result is cut, with a notice that the model sees."""


class CheckpointConfig(Config):
    """When state is written."""

    every: Positive = 50
    """Optimizer steps between checkpoints; one is also written at the end and on interruption."""
    keep: Positive = 2
    """Newest checkpoints kept."""


class LimitsConfig(Config):
    """When a run that goes nowhere stops."""

    max_unscorable_share: Share = 0.5
    """The run stops when more than this share of the last `window_groups` groups had no scorable rollout."""
    window_groups: Positive = 64
    max_filtered_groups: Positive = 512
    """The run stops when this many groups in a row had equal rewards and others were played in their place (dynamic sampling)."""
    wait_s: Seconds = 900.0
    """Longest wait of the learner for a batch."""
    quarantine_after: Positive | None = 3
    """A task is not played again after so many groups in a row that could not be scored; null plays it for ever."""


class CurriculumConfig(Config):
    """Difficulty pools, by the share of a task's rollouts that solve it; others are drawn in place of what is left out."""

    easy_rate: Share = 0.9
    """A task is easy from this pass rate on."""
    hard_rate: Share = 0.1
    """A task is hard up to this pass rate."""
    easy_share: Share = 0.1
    """Share of the times that an easy task's turn comes at which it is played."""
    hard_share: Share = 0.5
    """The same for hard tasks."""
    solved_at: float = 1.0
    """A rollout with at least this score has solved its task."""

    @model_validator(mode="after")
    def _apart(self) -> CurriculumConfig:
        if self.hard_rate >= self.easy_rate:
            raise ValueError(f"hard_rate={self.hard_rate} must lie below easy_rate={self.easy_rate}: a task is in one pool at a time")
        return self


class EnvShareConfig(Config):
    """One of several environments."""

    env: str
    """Its spec."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the training tasks, in proportion to the others'."""


class ReplayConfig(Config):
    """Groups of earlier steps, trained again in the place of those whose rewards are all equal."""

    size: Positive = 64
    """Most groups that are kept: those whose rewards differ most."""
    max_age: Positive | None = None
    """Optimizer steps after which a group is forgotten; null keeps it until others push it out."""


class WarmStartConfig(Config):
    """Optimizer steps on the rollouts of an earlier run, before the first step of this one."""

    run: str
    """Folder of the earlier run; its `rollouts/` are read, in the order in which they were logged, and begun again at their end."""
    mode: Literal["supervised", "off_policy"] = "supervised"
    """`supervised`: the likelihood of the best rollouts; `off_policy`: the run's own objective, against the policy that sampled them."""
    steps: Positive = 50
    """Optimizer steps, of `groups_per_step` groups each; the run's own `steps` come after them."""
    min_reward: float | None = None
    """Supervised: least score of a rollout that is imitated; null takes the best of each group in which scores differ."""
    lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate of these steps, without a schedule; null takes `learner.lr`."""

    @model_validator(mode="after")
    def _reward_is_for_imitation(self) -> WarmStartConfig:
        if self.mode == "off_policy" and self.min_reward is not None:
            raise ValueError(
                "min_reward chooses rollouts to imitate, and mode off_policy trains all of them: remove it, or set mode=supervised"
            )
        return self


class FrozenPolicyConfig(Config):
    """A further policy that environments may ask for turns: an opponent, a user simulator, a judge. Nothing trains it."""

    model: str | None = None
    """A folder or Hub name; null is the run's own model, as it began."""
    update_every: Positive | None = None
    """Take over the trained policy's weights each so many optimizer steps (self-play against an earlier self); null never does."""
    keep: Literal["needed", "all"] = "needed"
    """Which of those weights stay in the run folder: what a resume needs, or every version."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """0 is greedy."""
    servers: list[str] = Field(default_factory=list)
    """URLs of vLLM servers that serve it; `model` is then where its tokenizer is. By default an embedded engine of its own."""

    @model_validator(mode="after")
    def _consistent(self) -> FrozenPolicyConfig:
        if self.update_every and (self.model is not None or self.servers):
            raise ValueError("update_every gives it the run's own weights: remove model and servers, or update_every")
        if self.servers and self.model is None:
            raise ValueError("servers serve a model of their own: name the folder or Hub name with its tokenizer in model")
        return self


class TeacherConfig(Config):
    """A model that the policy is distilled from; nothing trains it."""

    name: str = "teacher"
    """What the column `teacher` of a row calls it, where there are several."""
    model: str | None = None
    """A folder or Hub name, loaded beside the policy."""
    servers: list[str] = Field(default_factory=list)
    """URLs of vLLM servers that serve it; `model` is then where its tokenizer is. By default it is loaded beside the policy."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share in the loss of rows that name no teacher, in proportion to the others'."""
    temperature: Annotated[float, Field(gt=0, le=10)] | None = None
    """Of its distribution; null takes the one at which the objective compares the two."""
    timeout_s: Seconds = 120.0
    """Longest wait for its servers' scores of one text."""
    api_key_env: str = "AGENTRL_TEACHER_API_KEY"
    """Environment variable that holds the servers' key, where they ask for one."""

    @field_validator("servers")
    @classmethod
    def _urls(cls, value: list[str]) -> list[str]:
        return urls(value)

    @model_validator(mode="after")
    def _has_a_model(self) -> TeacherConfig:
        if self.model is None:
            raise ValueError("a teacher needs a model: a folder or Hub name (beside `servers`, where its tokenizer is)")
        return self


class RunConfig(Config):
    """A whole run file."""

    model: str
    """A folder or Hub name that transformers loads, or `quickstart`: the small model that ships with agentrl."""
    env: str | None = None
    """An environment spec: `name?arg=value`, `file.py:Name` or `package.module:Name`."""
    envs: list[EnvShareConfig] = Field(default_factory=list)
    """Instead of `env`: several environments, each with a share of the tasks."""
    dataset: str | None = None
    """Instead of `env`, with `rewards`: a JSON-lines file whose rows have a `prompt` and the columns that the rewards read.

    For an offline objective: a file, folder or Hub name, `path?split=train`, and no rewards.
    """
    datasets: list[DatasetShareConfig] = Field(default_factory=list)
    """Instead of `dataset`, for an offline objective: several, each with a share of the rows."""
    eval_dataset: str | None = None
    """Rows that an offline run is evaluated on."""
    data: DataConfig = DataConfig()
    """How the rows of an offline run become tokens."""
    batch_size: Positive = 32
    """Rows of one optimizer step of an offline run."""
    evaluation: EvaluationConfig = EvaluationConfig()
    hub: HubConfig | None = None
    """Push the model to the Hugging Face Hub; null keeps it here. `agentrl push` does so later."""
    loggers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """What is given the metrics too, beside metrics.jsonl in the run folder."""
    rewards: list[str] = Field(default_factory=list)
    """Reward functions for `dataset`: `file.py:function`, `package.module:function`, or what a factory makes, `module:factory?arg=value`.

    Each is `f(prompts, completions, completion_ids, **columns) -> list[float | None]`.
    """
    reward_weights: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=list)
    """Weights of `rewards`, one each, in their order; all 1 by default. (`objective.reward_weights` weighs parts of scores by name.)"""
    judge: str | None = None
    """A function for `dataset` that compares two completions, for objectives that learn from preferences; beside `rewards`, or without.

    It is `f(prompts, completions) -> list[int]`, a pair of completions a prompt: 0 the first is better, 1 the second, -1 cannot tell.
    """
    imports: list[str] = Field(default_factory=list)
    """Modules or files that every process imports first: they register environments and objectives."""
    objective: dict[str, Any] = Field(default_factory=lambda: {"name": "grpo"})
    """`grpo` is short for `{name: grpo}`; the other keys are the objective's own."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Positive | None = None
    """Optimizer steps of the whole run; 100 by default, and in an offline run what `epochs` makes of the data."""
    epochs: Positive | None = None
    """Ends the run when each training task was dispatched this often, if `steps` has not ended it before. An offline run without `steps`
    and `epochs` ends after one."""
    group_size: Positive = 8
    """Rollouts of one task."""
    groups_per_step: Positive = 16
    """Tasks of one optimizer step."""
    max_staleness: NonNegative = 1
    """Optimizer steps that a sampled token may lag behind the step that trains it; 0 is exactly synchronous."""
    batch_order: Literal["dispatch", "finished"] = "dispatch"
    """`dispatch`: a step trains the oldest groups, in dispatch order. `finished`: the oldest that are finished, within the bound."""
    on_bound: Literal["wait", "requeue", "over"] = "wait"
    """When the step waits for a group older than the bound: wait for it, cancel it and play the task again, or go past the bound."""
    teacher: list[TeacherConfig] = Field(default_factory=list)
    """For objectives that distil: `teacher: FOLDER` is short for `teacher: [{model: FOLDER}]`. Of several each has a share in the loss, or
    the rows that name it in a column `teacher`."""
    policies: dict[str, FrozenPolicyConfig] = Field(default_factory=dict)
    """Frozen policies by the names that environments call them, beside `policy`, the one that is trained."""
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    rollout: RolloutConfig = RolloutConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    limits: LimitsConfig = LimitsConfig()
    curriculum: CurriculumConfig | None = None
    """Draw tasks by how often they are solved; null plays each once an epoch."""
    replay: ReplayConfig | None = None
    """Train groups of earlier steps in the place of those without a signal; null trains the step's own groups only."""
    warm_start: WarmStartConfig | None = None
    """Begin with optimizer steps on the rollouts of an earlier run; null begins with the model as it is."""
    output: str | None = None
    """The run folder; by default `runs/<env>-<model>-<date>-<time>`."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run; of an offline run without `steps` only once its data is known."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @field_validator("policies")
    @classmethod
    def _named_policies(cls, value: dict[str, FrozenPolicyConfig]) -> dict[str, FrozenPolicyConfig]:
        for name in value:
            if name == "policy" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name):
                raise ValueError(f"got a policy named {name!r}; letters, digits, _ and - make a name, and `policy` is the trained one")
        return value

    def teacher_of(self, value: object, where: str) -> str | None:
        """The teacher that a row is for, by the value of its column `teacher`; None is all of them.

        Args:
            value: of the column, which means nothing where there is one teacher; None where the row has none.
            where: file and row, for messages.

        Raises `ConfigError` for a name that no teacher has.
        """
        if len(self.teacher) < 2 or value is None:
            return None
        known = [one.name for one in self.teacher]
        if value not in known:
            raise ConfigError(f"{where}: field `teacher` got {value!r:.80}; it must be one of the run file's teachers: {', '.join(known)}")
        return str(value)

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_teacher(cls, value: Any) -> Any:
        return [{"model": value}] if isinstance(value, str) else [value] if isinstance(value, dict) else value

    @field_validator("teacher")
    @classmethod
    def _named_apart(cls, value: list[TeacherConfig]) -> list[TeacherConfig]:
        names = [one.name for one in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two teachers are called {twice[0]!r}: give each a `name` of its own")
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _short_objective(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("objective")
    @classmethod
    def _named_objective(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "name" not in value:
            raise ValueError("objective needs a name: write `objective: grpo` or `objective: {name: grpo, ...}`")
        return value
