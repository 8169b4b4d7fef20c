"""Reward functions and a dataset as TRL's GRPOTrainer takes them, trained by agentrl unchanged: python examples/trl_reward.py.

With TRL the same two would be `GRPOTrainer(reward_funcs=[correct, brief, boxed], train_dataset=Dataset.from_list(rows()), ...)`. In a run
file: `dataset: rows.jsonl`, `rewards: [examples/trl_reward.py:correct, ...]`, `reward_weights: [1.0, 0.1, 0.5]`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any


def correct(completions: list[Any], ground_truth: list[str], log_metric: Any, **kwargs: Any) -> list[float]:
    """1 for the number that the column `ground_truth` holds."""
    said = [re.findall(r"-?\d+", completion[-1]["content"]) for completion in completions]
    rewards = [1.0 if numbers and numbers[-1] == right else 0.0 for numbers, right in zip(said, ground_truth, strict=True)]
    log_metric("accuracy", sum(rewards) / len(rewards))
    return rewards


def brief(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Less for each sampled token."""
    return [-0.01 * len(ids) for ids in completion_ids]


async def boxed(completions: list[Any], task: list[str], **kwargs: Any) -> list[float | None]:
    """Only for the rows whose column `task` asks for a box: None leaves it out of the sum of the others."""
    await asyncio.sleep(0)  # where a service would be asked
    return [
        float("\\boxed{" in completion[-1]["content"]) if kind == "boxed" else None
        for completion, kind in zip(completions, task, strict=True)
    ]


def rows() -> list[dict[str, Any]]:
    """Conversational prompts, and the columns that the functions above read."""
    return [
        {
            "prompt": [{"role": "user", "content": f"What is {a}+{b}?"}],
            "ground_truth": str(a + b),
            "task": "boxed" if b % 3 == 0 else "plain",
        }
        for a in range(10, 60)
        for b in range(10, a)
    ]


if __name__ == "__main__":  # the run's other processes import this file
    import agentrl

    agentrl.train(
        {
            "model": "quickstart",
            "steps": 20,
            "sampling": {"max_tokens": 8},
            "learner": {"lr": 1e-4},
            "reward_weights": [1.0, 0.1, 0.5],
        },
        dataset=rows(),
        rewards=[correct, brief, boxed],
    )
