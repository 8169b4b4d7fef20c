"""Run by `test_rows_on_ranks.py` on each of two ranks: steps on a dataset's rows, and what came of them in a file of each rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import dataset_rows
import learner_fakes as fakes

from agentrl import objectives
from agentrl.learner.ranks import start


def main(plan_file: str) -> None:
    """Follow the plan: which model, options and objectives, and where to write."""
    plan = json.loads(Path(plan_file).read_text())
    torch.set_num_threads(1)
    out = Path(plan["out"])
    config = fakes.run_config(**plan["config"])
    accelerator = start(config)
    result = {}
    for title, objective in plan["objectives"].items():
        rows = dataset_rows.make_examples(objectives.get(objective["name"]).data)
        learner = fakes.make_learner(plan["model"], config, objective, accelerator=accelerator, master_dtype=torch.float64)
        metrics = [learner.update_examples(rows[:count]) for count in plan["steps"]]
        metrics.append(learner.evaluate_examples(rows))
        learner.save(out / title / "checkpoint")
        learner.export(out / title / "model", None)
        resumed = fakes.make_learner(plan["model"], config, objective, accelerator=accelerator, master_dtype=torch.float64)
        resumed.load(out / title / "checkpoint")
        for one in (learner, resumed):
            one.update_examples(rows)
        pairs = zip(learner.named_weights(), resumed.named_weights(), strict=True)
        equal = all(torch.equal(left, right) for (_, left), (_, right) in pairs)
        result[title] = {
            "metrics": metrics,
            "resumed_equal": equal,
            "weights": {name: one.clone() for name, one in learner.named_weights()},
        }
    torch.save(result, out / f"rank{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
