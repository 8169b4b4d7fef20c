"""Run by the objectives' report on each of two ranks: the gradient of every row, in a file for each rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "objectives"))

import learner_fakes as fakes
import report_learner

from agentrl.learner.ranks import start


def main(plan_file: str) -> None:
    """Follow the plan: which model, which options by row, and where to write."""
    plan = json.loads(Path(plan_file).read_text())
    torch.set_num_threads(1)
    settings = {"ranks": 2, "tokens_per_micro_batch": 50}
    accelerator = start(fakes.run_config(learner=settings))
    groups = report_learner.nearby_groups(
        report_learner.make_learner({"name": "grpo"}, plan["model"], accelerator=accelerator, settings=settings)
    )
    found = {}
    for title, options in plan["rows"].items():
        learner = report_learner.make_learner(options, plan["model"], accelerator=accelerator, settings=settings)
        found[title] = report_learner.gradient(learner, report_learner.as_wanted(groups, learner))
    torch.save(found, Path(plan["out"]) / f"rank{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
