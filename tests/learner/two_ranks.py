"""Run by `test_ranks.py` on each of two ranks: a few steps, and what came of them in a file of rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import learner_fakes as fakes

from agentrl.learner import broadcast_groups
from agentrl.learner.ranks import start


def main(plan_file: str) -> None:
    """Follow the plan: which model, options and groups, and where to write."""
    plan = json.loads(Path(plan_file).read_text())
    torch.set_num_threads(1)
    out = Path(plan["out"])
    config = fakes.run_config(**plan["config"])
    accelerator = start(config)
    learner = fakes.make_learner(
        plan["model"], config, plan["objective"], accelerator=accelerator, master_dtype=getattr(torch, plan["dtype"])
    )
    result: dict[str, object] = {"gradients": [], "metrics": [], "marks": [learner.fingerprint()]}
    for step in plan["steps"]:
        mine = fakes.make_groups(**step) if accelerator.is_main_process else None
        groups = list(broadcast_groups(accelerator, mine))
        taken, metrics = fakes.gradient_at_rest(learner, groups)
        result["gradients"].append(taken)  # type: ignore[attr-defined]
        result["metrics"].append(metrics)  # type: ignore[attr-defined]
        result["marks"].append(learner.fingerprint())  # type: ignore[attr-defined]
    learner.update(groups)
    result["weights"] = {name: tensor.clone() for name, tensor in learner.named_weights()}
    result["others"] = fakes.others(learner)
    learner.save(out / "checkpoint")
    learner.export(out / "model", None)
    resumed = fakes.make_learner(
        plan["model"], config, plan["objective"], accelerator=accelerator, master_dtype=getattr(torch, plan["dtype"])
    )
    resumed.load(out / "checkpoint")
    for one in (learner, resumed):
        one.update(fakes.make_groups(99))
    pairs = zip(learner.named_weights(), resumed.named_weights(), strict=True)
    result["resumed_equal"] = all(torch.equal(left, right) for (_, left), (_, right) in pairs)
    pairs = zip(fakes.others(learner).values(), fakes.others(resumed).values(), strict=True)
    result["resumed_equal"] &= all(torch.equal(left, right) for left, right in pairs)  # type: ignore[operator]
    torch.save(result, out / f"rank{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
