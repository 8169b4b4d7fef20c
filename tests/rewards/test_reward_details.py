"""What reward functions log beside their value is kept, and never a part of it."""

from __future__ import annotations

import asyncio

from agentrl.environment import Episode
from agentrl.metrics import group_metrics
from agentrl.records import Group, Rollout, Task, Version
from agentrl.single_turn import SingleTurn


def logs(prompts, completions, log_metric, log_extra, **_):
    log_metric("seen", len(completions[0]))
    log_metric("nothing", float("nan"))
    log_metric("text", "3")
    log_extra("checked", [2])
    log_extra("why", ["because"])
    return [1.0]


def test_metrics_of_a_reward_function_are_details_of_the_score():
    environment = SingleTurn(train=[{"prompt": "x"}], rewards=[logs])
    task = Task.from_row("env", {"prompt": "x"})
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "four"}]
    episode = Episode(task=task, prompt="x", messages=messages, completion_ids=[1], ending="complete")
    score = asyncio.run(environment.score(episode))
    assert (score.value, score.parts, score.details) == (1.0, {"logs": 1.0}, {"seen": 4.0, "checked": 2.0})
    rollout = Rollout(task=task, member=0, turns=(), messages=(), ending="complete", score=score)
    metrics = group_metrics([Group(index=0, task=task, rollouts=(rollout, rollout), dispatched=Version())], step=0)
    assert (metrics["details/seen"], metrics["rewards/logs/mean"]) == (4.0, 1.0)
    assert "rewards/seen/mean" not in metrics
