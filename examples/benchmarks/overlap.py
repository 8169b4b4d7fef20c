"""How well generation and learning overlap: a run's step against generation alone and learning alone; prints one JSON line.

    python examples/benchmarks/overlap.py

The fixed work of `bench_model.py`, `max_staleness: 1`, one thread for the engine and one for the learner. Generation alone: engine,
rollout process and environment with as many groups in flight as in the run, and no learner. Learning alone: the learner's updates on the
very groups that the run trained, and no engine. Rounds are interleaved and medians count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench_model import GROUP_SIZE, GROUPS_PER_STEP, make_model

from agentrl import objectives, runfile
from agentrl.buffer import Dispatch
from agentrl.records import SamplingContract, Version
from agentrl.rollout_log import read_groups
from agentrl.session import Session
from agentrl.tasks import TaskSource

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.records import Group

HERE = Path(__file__).parent
SKIPPED = 3
"""Steps that are not counted: the pipeline fills."""


def make_config(scratch: Path, output: Path, steps: int) -> RunConfig:
    values = {
        "model": str(scratch / "model"),
        "env": f"{HERE / 'bench_env.py'}:Bench?mode=fixed",
        "objective": "grpo",
        "steps": steps,
        "group_size": GROUP_SIZE,
        "groups_per_step": GROUPS_PER_STEP,
        "max_staleness": 1,
        "sampling": {"max_tokens": 64},
        "engine": {"threads": 1, "slots": 2 * GROUP_SIZE * GROUPS_PER_STEP},
        "learner": {"threads": 1, "lr": 1e-6},
        "checkpoint": {"every": 1000},
        "output": str(output),
    }
    return runfile.from_mapping(values)


def together(config: RunConfig, path: Path) -> float:
    """Seconds a step of a whole run."""
    path.write_text(runfile.dump(config))
    subprocess.run([sys.executable, "-m", "agentrl", "train", str(path)], check=True, stdout=subprocess.DEVNULL)
    assert config.output is not None
    metrics = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(one["time/step_s"] for one in metrics[SKIPPED:])


def generation_alone(config: RunConfig, scratch: Path) -> float:
    """Seconds for the groups of one step, with two steps' groups in flight."""
    total = config.steps * GROUPS_PER_STEP
    ends: list[float] = []
    done, lock = threading.Event(), threading.Lock()
    given = 0
    with Session(config, scratch / "logs") as session:
        session.start_engine(config.model)
        tasks = TaskSource(session.environment, session.rows("train"), config.seed)

        def next_group() -> Dispatch | None:
            nonlocal given
            with lock:
                if given >= min(total, len(ends) + 2 * GROUPS_PER_STEP):
                    return None
                given += 1
                return Dispatch(index=given - 1, task=tasks.task(given - 1), version=Version())

        def played(_: Group) -> None:
            with lock:
                ends.append(time.perf_counter())
            if len(ends) == total:
                done.set()
            fleet.pump()

        contract = SamplingContract(dtype=session.dtype)
        fleet = session.start_fleet(contract=contract, next_group=next_group, on_played=played, on_lost=print)
        if not done.wait(300):
            raise TimeoutError(f"only {len(ends)} of {total} groups came back")
    ends.sort()
    counted = ends[SKIPPED * GROUPS_PER_STEP - 1 :: GROUPS_PER_STEP]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def learning_alone(config: RunConfig) -> float:
    """Seconds of an update, on the groups that a run trained."""
    import torch

    from agentrl.learner import Learner

    torch.set_num_threads(1)
    assert config.output is not None
    groups = sorted(read_groups(Path(config.output) / "rollouts"), key=lambda group: group.index)
    learner = Learner(config, objectives.get("grpo"), objectives.validate(config.objective), config.model)
    seconds = []
    for step in range(config.steps):
        started = time.perf_counter()
        learner.update(groups[step * GROUPS_PER_STEP : (step + 1) * GROUPS_PER_STEP])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[SKIPPED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    steps: list[float] = []
    generation: list[float] = []
    learning: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_model(scratch / "model")
        for number in range(options.rounds):
            config = make_config(scratch, scratch / f"run-{number}", options.steps)
            steps.append(together(config, scratch / f"run-{number}.yaml"))
            generation.append(generation_alone(config, scratch))
            learning.append(learning_alone(config))
    medians = [statistics.median(column) for column in (steps, generation, learning)]
    result = {
        "benchmark": "overlap",
        "step_s": round(medians[0], 3),
        "generation_alone_s": round(medians[1], 3),
        "learning_alone_s": round(medians[2], 3),
        "ratio": round(medians[0] / max(medians[1:]), 3),
        "rounds": [[round(value, 3) for value in row] for row in zip(steps, generation, learning, strict=True)],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
