"""A warm start: optimizer steps on the rollouts that an earlier run logged, before the first step of this one.

    rollouts/ of the earlier run -> groups that can be trained -> `groups_per_step` of them a step, in order and over again

`supervised` imitates: the negative log-likelihood of the sampled tokens of the best rollouts (best-of-n, rejection sampling).
`off_policy` trains the run's own objective on all of them. Its ratio's denominators are the recorded log-probs of the policy that sampled,
as in every online step, so it is valid as far as that ratio and its clip go; an earlier run of the same model gives ratios near 1.

The steps do not count: the run's own `steps`, its learning rate's schedule and its versions begin after them, and what the optimizers
keep of them is forgotten, so that their gradients do not push the first online steps. The reference stays the run's `model` as it is on
the disk. Each rank does all of this alike; rank 0 reads the groups and hands them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.dispositions import has_signal
from agentrl.errors import ConfigError, LearnerDiverged
from agentrl.imitation import imitated
from agentrl.objectives.sft import IMITATION
from agentrl.records import Group, Rollout, SamplingContract, Turn, Version
from agentrl.rollout_log import read_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentrl.config import RunConfig, WarmStartConfig
    from agentrl.learner import Learner
    from agentrl.objectives import Needs
    from agentrl.progress import Progress
    from agentrl.run_folder import RunFolder


@dataclass
class _Found:
    """What was read, for the messages."""

    groups: int = 0
    differing: int = 0
    """Groups in which scores differ."""
    best: float | None = None
    """Highest score."""

    def count(self, group: Group) -> None:
        scores = [score for score in group.scores if score is not None]
        self.groups += 1
        self.differing += len(set(scores)) > 1
        self.best = max(scores, default=self.best) if self.best is None else max([self.best, *scores])


def mistakes_of_warm_start(config: RunConfig, needs: Needs, name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Why a run cannot start warm, each with the key that would have to change."""
    section = config.warm_start
    if section is None:
        return
    if section.mode == "off_policy" and needs.rival is not None:
        yield (
            ("warm_start", "mode"),
            f"`warm_start.mode` is off_policy, and objective {name!r} plays against rivals that this run's reference has a share in, which "
            "the earlier run's rollouts do not: set warm_start.mode=supervised",
        )


def read_warm_start(config: RunConfig, needs: Needs) -> list[Group]:
    """The groups to train on, in the order of the log; as many as the steps take, or all there are.

    Args:
        config: the run file, with a `warm_start`.
        needs: of the run's objective.

    Raises `ConfigError` for a folder without rollouts, for rollouts of which none can be trained, and in mode `off_policy` for those
    that were sampled otherwise than this run samples.
    """
    section = config.warm_start
    assert section is not None
    folder = Path(section.run) / "rollouts"
    if not folder.is_dir():
        what = "which has no rollouts/" if folder.parent.is_dir() else "and there is no such folder"
        raise ConfigError(f"warm_start.run is {section.run}, {what}: give the folder of an earlier run, as `agentrl train` printed it")
    chosen: Callable[[Group], Group | None] = _imitated(config, section) if section.mode == "supervised" else _trainable(needs)
    found, groups = _Found(), []
    for group in read_groups(folder):
        found.count(group)
        usable = chosen(group)
        if usable is None:
            continue
        if section.mode == "off_policy":
            _check_contracts(group, config, section)
        groups.append(usable)
        if len(groups) == section.steps * config.groups_per_step:
            break
    if not groups:
        raise ConfigError(_nothing(section, needs, found))
    return _as_of_now(groups)


def check_vocabulary(groups: Sequence[Group], learner: Learner, run: str) -> None:
    """Raise `ConfigError` where the earlier run's tokens are not all tokens of the learner's model."""
    from agentrl.learner.model import output_layer

    vocabulary = output_layer(learner.policy.base).weight.shape[0]
    highest = max((int(turn.span.ids.max(initial=0)) for group in groups for one in group.rollouts for turn in one.own_turns), default=0)
    if highest >= vocabulary:
        raise ConfigError(
            f"the rollouts of {run} hold token {highest}, and this run's model has {vocabulary} tokens: warm_start.run must be a run of a "
            "model with the same tokenizer"
        )


def warm_up(learner: Learner, config: RunConfig, folder: RunFolder, groups: Sequence[Group], progress: Progress) -> None:
    """Do the steps on rank 0, log each and say what became of them.

    Raises `ConfigError` where the groups are not of a model like the learner's, `LearnerDiverged`, and `CheckpointError` for a full disk.
    """
    section = config.warm_start
    assert section is not None
    check_vocabulary(groups, learner, section.run)
    progress.waiting("the warm start")
    losses = []
    for metrics in warm_steps(learner, config, groups):
        folder.log_warm_step(metrics)
        losses.append(metrics["loss"])
    said = f"warm start: {section.steps} steps on {len(groups)} groups of {section.run}"
    progress.message(f"{said}, loss {losses[0]:.3g} to {losses[-1]:.3g}")


def warm_steps(learner: Learner, config: RunConfig, groups: Sequence[Group] | None) -> Iterator[dict[str, float]]:
    """Do the steps, and yield the metrics of each; a collective.

    Args:
        learner: which has done no step yet.
        config: the run file, with a `warm_start`.
        groups: on rank 0, those of `read_warm_start`; the other ranks pass None.

    Raises `LearnerDiverged`.
    """
    from agentrl.learner import ranks

    section = config.warm_start
    assert section is not None
    objective = IMITATION if section.mode == "supervised" else None
    rate = config.learner.lr if section.lr is None else section.lr
    for number in range(section.steps):
        mine = None if groups is None else _step_of(groups, number, config.groups_per_step)
        taken = ranks.broadcast_groups(learner.accelerator, mine)
        try:
            metrics = learner.warm(taken, objective, rate=rate, number=number)
        except LearnerDiverged as error:
            raise LearnerDiverged(f"warm start: {error}") from error
        yield {
            "step": number + 1,
            "loss": metrics["loss"],
            "tokens": metrics["learner/counted_tokens"],
            "grad_norm": metrics.get("grad_norm", 0.0),
        }
    learner.forget_moments()


def _step_of(groups: Sequence[Group], number: int, size: int) -> list[Group]:
    """The groups of a step, in turn; no group twice in one step."""
    size = min(size, len(groups))
    return [groups[place % len(groups)] for place in range(number * size, (number + 1) * size)]


def _imitated(config: RunConfig, section: WarmStartConfig) -> Callable[[Group], Group | None]:
    """Leaves the rollouts that are good enough, if any."""
    # what sampled them does not matter for their likelihood, which is that of the distribution that this run samples
    contract = SamplingContract(temperature=config.sampling.temperature)

    def choose(group: Group) -> Group | None:
        best = imitated(group, section.min_reward, without_truncated=config.learner.mask_truncated)
        return replace(group, rollouts=tuple(_resampled(one, contract) for one in best), preferences=()) if best else None

    return choose


def _resampled(rollout: Rollout, contract: SamplingContract) -> Rollout:
    return replace(rollout, turns=tuple(replace(turn, contract=contract) for turn in rollout.turns))


def _trainable(needs: Needs) -> Callable[[Group], Group | None]:
    """Lets those groups through that an online step would take, and that can teach the objective something."""

    def choose(group: Group) -> Group | None:
        scorable = sum(score is not None for score in group.scores)
        judged = not needs.judge or any(chance is not None for chance in group.preferences)
        teaches = has_signal(group, needs) or not needs.signal
        return group if scorable >= needs.group_size and judged and teaches else None

    return choose


def _check_contracts(group: Group, config: RunConfig, section: WarmStartConfig) -> None:
    wanted = config.sampling.temperature
    for contract in {turn.contract for rollout in group.rollouts for turn in rollout.own_turns}:
        if contract.temperature != wanted:
            raise ConfigError(
                f"the rollouts of {section.run} were sampled at temperature {contract.temperature:g}, and this run samples at {wanted:g}: "
                "their log-probs are those of another distribution than the learner scores. Set sampling.temperature="
                f"{contract.temperature:g}, or warm_start.mode=supervised"
            )
        if contract.truncated or contract.reference_share > 0:
            what = "by a policy mixed with a reference" if contract.reference_share > 0 else "from a part of the vocabulary"
            raise ConfigError(
                f"rollouts of {section.run} were sampled {what}, which off_policy cannot score: set warm_start.mode=supervised"
            )


def _as_of_now(groups: Sequence[Group]) -> list[Group]:
    """The same with the newest version that sampled as step 0, so that staleness counts from there and not from the other run's start."""
    newest = max(
        (run.version.step for group in groups for one in group.rollouts for turn in one.own_turns for run in turn.span.versions), default=0
    )

    def moved(turn: Turn) -> Turn:
        runs = tuple(replace(run, version=Version(step=run.version.step - newest)) for run in turn.span.versions)
        return replace(turn, span=replace(turn.span, versions=runs))

    return [replace(group, rollouts=tuple(replace(one, turns=tuple(map(moved, one.turns))) for one in group.rollouts)) for group in groups]


def _nothing(section: WarmStartConfig, needs: Needs, found: _Found) -> str:
    start = f"warm_start.run is {section.run}, which holds {found.groups} finished group{'' if found.groups == 1 else 's'}"
    if not found.groups:
        return f"{start}: give a run that has played some"
    start += " with no rollout that could be scored" if found.best is None else f" with a highest score of {found.best:g}"
    if section.mode == "off_policy":
        also = (" and a judge's preferences" if needs.judge else "") + (" whose rewards differ" if needs.signal else "")
        return f"{start}, and none that this objective trains: it takes groups of at least {needs.group_size} scorable rollouts{also}"
    if section.min_reward is not None and (found.best is None or found.best < section.min_reward):
        return f"{start}, and no rollout reaches warm_start.min_reward={section.min_reward:g}: lower it"
    if section.min_reward is None and not found.differing:
        return f"{start}, and in none of them do scores differ: say with warm_start.min_reward which rollouts are good"
    return f"{start}, and whatever is good enough sampled no token or was truncated, which learner.mask_truncated leaves out"
