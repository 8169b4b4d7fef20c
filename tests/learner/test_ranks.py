from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import learner_fakes as fakes
import pytest
import torch

from agentrl.errors import ConfigError
from agentrl.learner import broadcast_groups
from agentrl.learner.ranks import check, gather_messages, start

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # Accelerate's `--cpu` starts one process, whatever --num_processes says, unless MPI is there.
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


PPO = {"name": "ppo", "epochs": 1, "minibatches": 2}
BEMA = {"kind": "bema", "every": 1}
MOVING = {"reference_sync": {"every": 5, "rate": 0.5}}


def on_two_ranks(launcher: str, plan: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Run the plan and return what each rank found."""
    (out / "plan.json").write_text(json.dumps(plan | {"out": str(out)}))
    command = [sys.executable, *LAUNCHERS[launcher], str(Path(__file__).parent / "two_ranks.py"), str(out / "plan.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "kind", "dtype", "objective", "options", "launcher"),
    [
        ("ddp", "starcoder2", "float64", {"name": "grpo"}, {}, "torchrun"),
        ("fsdp2", "starcoder2", "float64", {"name": "grpo", "normalization": "token_mean", "top_entropy": 0.5}, {}, "torchrun"),
        ("ddp", "qwen3", "float32", {"name": "grpo", "beta": 0.1}, {}, "accelerate"),
        ("fsdp2", "qwen3", "float32", {"name": "grpo", "beta": 0.1}, {"gradient_checkpointing": True}, "accelerate"),
        ("ddp", "qwen3", "float32", {"name": "rloo", "beta": 0.1}, {"lora": {"rank": 4}}, "torchrun"),
        ("fsdp2", "qwen3", "float32", {"name": "rloo", "beta": 0.1}, {"lora": {"rank": 4}}, "torchrun"),
        (
            "fsdp2",
            "starcoder2",
            "float32",
            {"name": "rloo", "beta": 0.1},
            {"lora": {"rank": 4, "variant": "dora"}, "ema": BEMA},
            "torchrun",
        ),
        ("ddp", "qwen3", "float32", {"name": "grpo"}, {"lora": {"rank": 4, "quantize": "8bit"}, "ema": {"decay": 0.9}}, "torchrun"),
        ("fsdp2", "starcoder2", "float64", {"name": "grpo"}, {"ema": BEMA}, "torchrun"),
        ("fsdp2", "starcoder2", "float64", PPO | {"critic": "head", "critic_warmup_steps": 5}, {}, "torchrun"),
        ("fsdp2", "starcoder2", "float64", PPO, MOVING, "torchrun"),
        ("ddp", "qwen3", "float32", PPO, MOVING, "accelerate"),
        ("ddp", "starcoder2", "float64", {"name": "online_dpo"}, {}, "torchrun"),
        ("ddp", "starcoder2", "float64", {"name": "opd"}, {}, "torchrun"),
        ("fsdp2", "starcoder2", "float64", {"name": "minillm"}, {}, "torchrun"),
    ],
)
def test_two_ranks_do_what_one_does(
    sharding: str,
    kind: str,
    dtype: str,
    objective: dict[str, object],
    options: dict[str, object],
    launcher: str,
    model_folder: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Odd numbers of micro-batches included, and steps in which one rank or both have nothing to do."""
    folder = model_folder(kind=kind, tie_word_embeddings=True, hidden_size=64, head_dim=32, intermediate_size=96, scale=0.05)
    learner = {"max_grad_norm": None, "lr": 1e-4, **options}
    plan = {
        "model": folder,
        "dtype": dtype,
        "objective": objective,
        "config": {"learner": learner | {"sharding": sharding, "ranks": 2, "tokens_per_micro_batch": 50}},
        "steps": [{"seed": 1}, {"seed": 2, "groups": 1, "members": 2}, {"seed": 0, "groups": 1, "members": 2}, {"seed": 3, "groups": 5}],
    }
    ranks = on_two_ranks(launcher, plan, tmp_path)
    alone = fakes.make_learner(folder, fakes.run_config(learner=learner), objective, master_dtype=getattr(torch, dtype))
    bound = 1e-12 if dtype == "float64" else 1e-6
    cut = {"learner/computed_tokens", "learner/micro_batches", "rewards/accuracies"}  # margins are 0 but for rounding
    for index, step in enumerate(plan["steps"]):
        groups = fakes.make_groups(**step)
        expected, metrics = fakes.gradient_at_rest(alone, groups)
        for rank in ranks:
            assert fakes.distance(rank["gradients"][index], expected) <= bound
            found = rank["metrics"][index]
            assert {name for name in found.keys() ^ metrics.keys() if not name.startswith("time/")} == set()
            assert all(value == ranks[0]["metrics"][index][name] for name, value in found.items() if not name.startswith("time/"))
            for name in found.keys() & metrics.keys() - cut:
                assert name.startswith("time/") or found[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
    alone.update(groups)
    for rank in ranks:
        assert len(set(rank["marks"])) == 1, "steps at rest, skipped ones too, leave each rank its own shards"
        assert rank["resumed_equal"]
        assert fakes.distance(rank["weights"], dict(alone.named_weights())) < 1e-5
        assert fakes.distance(rank["others"], fakes.others(alone)) < 1e-4
    again = fakes.make_learner(folder, fakes.run_config(learner=learner), objective, master_dtype=getattr(torch, dtype))
    again.load(tmp_path / "checkpoint")  # written by two ranks, read by one
    assert again.step == len(plan["steps"]) + 1
    assert fakes.distance(dict(again.named_weights()), ranks[0]["weights"]) == 0.0
    exported = fakes.make_learner(str(tmp_path / "model"), fakes.run_config(), master_dtype=getattr(torch, dtype))
    saved = dict(exported.named_weights())
    assert all(torch.equal(saved[name], tensor) for name, tensor in ranks[0]["weights"].items())


def test_one_rank_needs_no_messages() -> None:
    accelerator = start(fakes.run_config())
    groups = fakes.make_groups(0)
    assert broadcast_groups(accelerator, groups) == tuple(groups)
    assert broadcast_groups(accelerator, []) == ()
    assert gather_messages(accelerator, {"a": 1.0}, dict[str, float]) == [{"a": 1.0}]


class Launched:
    """An accelerator that another launcher made."""

    def __init__(self, processes: int, kind: accelerate.DistributedType) -> None:
        self.num_processes, self.distributed_type = processes, kind


def test_a_launcher_that_disagrees_is_refused() -> None:
    check(fakes.run_config(learner={"ranks": 2}), Launched(2, accelerate.DistributedType.MULTI_CPU))
    with pytest.raises(ConfigError, match=r"learner\.ranks=1, but 2 learner processes"):
        check(fakes.run_config(), Launched(2, accelerate.DistributedType.MULTI_CPU))
    with pytest.raises(ConfigError, match="configured for FSDP"):
        check(fakes.run_config(learner={"ranks": 2}), Launched(2, accelerate.DistributedType.FSDP))
