"""The gain between two evaluations of the same tasks, with its paired 95% interval.

agentrl eval RUN.yaml --model quickstart --json > before.json
agentrl eval RUN.yaml --model runs/RUN/model --json > after.json
python examples/paired_gain.py before.json after.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path


def paired_gain(before: dict[str, float], after: dict[str, float]) -> tuple[int, float, float]:
    """Number of tasks in both, the mean of their differences, and half its normal 95% interval."""
    gains = [after[task] - before[task] for task in before.keys() & after.keys()]
    return len(gains), statistics.mean(gains), 1.96 * statistics.stdev(gains) / len(gains) ** 0.5


def summary(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The gain with its 95% interval, as benchmarks print it."""
    count, mean, half = paired_gain(before, after)
    return {
        "tasks": count,
        "before": round(statistics.mean(before.values()), 3),
        "after": round(statistics.mean(after.values()), 3),
        "gain": round(mean, 3),
        "low": round(mean - half, 3),
        "high": round(mean + half, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    before, after = (json.loads(path.read_text())["task_means"] for path in (options.before, options.after))
    shared = before.keys() & after.keys()
    count, mean, half = paired_gain(before, after)
    means = [statistics.mean(column[task] for task in shared) for column in (before, after)]
    print(f"{count} tasks: {means[0]:.3f} before, {means[1]:.3f} after")
    print(f"gain {mean:.3f} (95% interval {mean - half:.3f} to {mean + half:.3f})")


if __name__ == "__main__":
    main()
