"""How much staleness each objective bears: the quickstart's model at a forced lag, then in the real asynchronous loop.

    python examples/lag_study/study.py                  # all runs (about an hour on one core), the table and the picture
    python examples/lag_study/study.py --seeds 0 --lags 0 16 --methods uncorrected grpo --no-async
    python examples/lag_study/study.py --report-only

Each run is appended to results.jsonl as it ends; what is there already is not run again. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core a run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
SHARED = {"scale_rewards": "none", "normalization": "token_mean", "minibatches": 1}
"""The same advantages, the same mean and one optimizer step a batch for every method."""
METHODS: dict[str, dict[str, Any]] = {
    "uncorrected": {"name": "grpo_uncorrected"},
    "grpo": {"name": "grpo"},
    "tis": {"name": "grpo", "corrections": [{"name": "tis", "max": 2}]},
    "icepop": {"name": "grpo", "corrections": [{"name": "icepop"}]},
    "decoupled_ppo": {"name": "decoupled_ppo"},
    "cispo": {"name": "cispo"},
    "dppo": {"name": "dppo"},
    "m2po": {"name": "m2po"},
    "gspo": {"name": "gspo", "normalization": "sequence_mean"},
    "decoupled_ppo_4": {"name": "decoupled_ppo", "minibatches": 4},
}
MAIN = ("uncorrected", "grpo", "tis", "icepop", "decoupled_ppo", "cispo", "dppo")
LAGS = (16, 4, 0, 1)
"""In the order in which they are run: the ends first."""


def objective_of(method: str) -> dict[str, Any]:
    """The `objective` section of a run file."""
    return SHARED | METHODS[method]


def recorded(path: Path) -> list[dict[str, Any]]:
    """All runs so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(path: Path, wanted: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those of the wanted runs that are not in the file, which is read anew before each."""
    for one in wanted:
        if not any(one.items() <= line.items() for line in recorded(path)):
            yield one


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(MAIN))
    parser.add_argument("--lags", nargs="+", type=int, default=list(LAGS), help="updates that the sampler is behind")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--async-staleness", nargs="+", type=int, default=[0, 4], help="max_staleness of the asynchronous runs")
    parser.add_argument("--async-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--no-forced", action="store_true", help="leave out the runs at a forced lag")
    parser.add_argument("--no-async", action="store_true", help="leave out the runs of `agentrl train`")
    parser.add_argument("--report-only", action="store_true", help="only write the table and the picture anew")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()

    import real_loop
    import uncorrected  # noqa: F401  # registers the objective
    from lagged import Setting, train
    from report import write_report

    setting = Setting()
    kinds = {
        "forced": (train, options.seeds, options.lags, options.no_forced),
        "async": (real_loop.train, options.async_seeds, options.async_staleness, options.no_async),
    }
    for kind, (run, seeds, lags, left_out) in kinds.items():
        cells = [(seed, lag, method) for seed in seeds for lag in lags for method in options.methods]
        wanted = [{"kind": kind, "method": method, "lag": lag, "seed": seed} for seed, lag, method in cells]
        for one in missing(options.results, [] if left_out or options.report_only else wanted):
            result = run(objective_of(one["method"]), one["lag"], one["seed"], setting)
            append(options.results, one | result | {"setting": asdict(setting)})
            print(one, result["held_out"][str(setting.steps)], f"{result['seconds']} s", flush=True)
    write_report(recorded(options.results), HERE)


if __name__ == "__main__":
    main()
