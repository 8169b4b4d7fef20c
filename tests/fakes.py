"""Records and stand-ins that several tests pass in as arguments."""

from __future__ import annotations

import numpy as np

from agentrl.records import Ending, Group, Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun


def make_span(
    num_prompt: int, num_sampled: int, *, step: int = 0, seed: int = 0, source: Source = Source.PROMPT, vocabulary: int = 50
) -> TokenSpan:
    """A span of prompt (or environment) tokens followed by sampled ones."""
    random = np.random.default_rng(seed)
    length = num_prompt + num_sampled
    logprobs = np.full(length, np.nan, dtype=np.float32)
    logprobs[num_prompt:] = -random.random(num_sampled)
    versions = (VersionRun(version=Version(step=step), start=num_prompt, end=length),) if num_sampled else ()
    return TokenSpan(
        ids=random.integers(0, vocabulary, length),
        source=[source] * num_prompt + [Source.SAMPLED] * num_sampled,
        logprobs=logprobs,
        versions=versions,
    )


def make_turn(span: TokenSpan, parent: int = -1) -> Turn:
    return Turn(parent=parent, span=span, contract=SamplingContract(), finish_reason="stop")


def make_rollout(
    reward: float | None,
    *,
    member: int = 0,
    num_prompt: int = 3,
    num_sampled: int = 4,
    step: int = 0,
    seed: int = 0,
    ending: Ending = "complete",
    task: Task | None = None,
) -> Rollout:
    """A single-turn rollout with this reward; None is unscorable."""
    return Rollout(
        task=task or Task.from_row("fake", {"prompt": "x"}),
        member=member,
        turns=(make_turn(make_span(num_prompt, num_sampled, step=step, seed=seed)),),
        messages=({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}),
        ending=ending,
        score=Score.unscorable("fake failure") if reward is None else Score(value=reward),
    )


def make_group(index: int, rewards: list[float | None], *, step: int = 0, task: Task | None = None, num_sampled: int = 4) -> Group:
    """A group with one rollout a reward, sampled by the weights of `step`."""
    task = task or Task.from_row("fake", {"prompt": "x", "number": index})
    rollouts = tuple(
        make_rollout(reward, member=member, step=step, seed=1000 * index + member, task=task, num_sampled=num_sampled)
        for member, reward in enumerate(rewards)
    )
    return Group(index=index, task=task, rollouts=rollouts, dispatched=Version(step=step))
