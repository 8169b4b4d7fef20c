"""How long it takes to grade 1,000 answers among which 64 would keep computer algebra busy for minutes, hours or for ever.

    python examples/benchmarks/math_pool.py [--workers 2] [--normal 1000]

One JSON line: seconds on the clock and of the CPU (workers included) with and without the 64, the starts of the processes included; and
`unaffected`, whether the normal answers got the same verdicts both times. The 64 are in `tests/cases/math_bombs.jsonl`: towers of powers,
factorials, sums, products, integrals, nesting, matrices, digits, simplifications that never end, and texts made for the normalizer.
Normal answers are half numbers, which take no computer algebra, and half formulas, which do; every other one is right.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from agentrl.rewards.grader_pool import GraderPool, Pair

BOMBS = Path(__file__).parents[2] / "tests/cases/math_bombs.jsonl"


def main() -> None:
    """Grade twice and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--normal", type=int, default=1000)
    options = parser.parse_args()
    normal = normal_pairs(options.normal)
    bombs = read_bombs(BOMBS)
    step = len(normal) // len(bombs)
    mixed = [
        pair
        for at, one in enumerate(normal)
        for pair in ([bombs[at // step], one] if at % step == 0 and at // step < len(bombs) else [one])
    ]
    alone, alone_s, alone_cpu_s = graded(normal, options.workers)
    both, both_s, both_cpu_s = graded(mixed, options.workers)
    among = [verdict for pair, verdict in zip(mixed, both, strict=True) if pair not in bombs]
    of_bombs = [verdict for pair, verdict in zip(mixed, both, strict=True) if pair in bombs]
    print(
        json.dumps(
            {
                "normal": len(normal),
                "bombs": len(bombs),
                "workers": options.workers,
                "seconds": round(both_s, 2),
                "seconds_without_bombs": round(alone_s, 2),
                "cpu_seconds": round(both_cpu_s, 2),
                "cpu_seconds_without_bombs": round(alone_cpu_s, 2),
                "unaffected": among == alone,
                "normal_correct": alone.count("correct"),
                "bombs_wrong": of_bombs.count("wrong"),
                "bombs_unscorable": of_bombs.count("unscorable"),
            }
        )
    )


def graded(pairs: list[Pair], workers: int) -> tuple[list[str], float, float]:
    """Verdicts, seconds on the clock, and seconds of the CPU in this process and the pool's."""
    before, started = _cpu_s(), time.perf_counter()
    with GraderPool(workers=workers) as pool:
        verdicts = [grade.verdict for grade in pool.grade_many(pairs)]
    return verdicts, time.perf_counter() - started, _cpu_s() - before


def normal_pairs(count: int) -> list[Pair]:
    """Golds and answers as they come from school mathematics."""
    pairs = []
    for number in range(1, count + 1):
        wrong = number % 2
        kinds = (
            (str(7 * number), f"so \\boxed{{{7 * number + wrong}}}"),
            (f"\\frac{{{number}\\pi}}{{3}}", f"\\boxed{{\\frac{{{2 * number + wrong}\\pi}}{{6}}}}"),
            (f"{number}.5", f"The answer is {2 * number + 1 + wrong}/2."),
            (f"x^2-{number * number}", f"\\boxed{{(x-{number})(x+{number + wrong})}}"),
            (f"\\frac{{{number}}}{{7}}", f"#### \\frac{{{3 * number}}}{{{21 + wrong}}}"),
            (f"{number}\\sqrt{{2}}", f"\\boxed{{\\sqrt{{{2 * number * number + wrong}}}}}"),
        )
        gold, answer = kinds[number // 2 % len(kinds)]
        pairs.append(Pair(gold=gold, answer=answer))
    return pairs


def read_bombs(path: Path) -> list[Pair]:
    """The pathological answers; each is written as pieces and how often each is repeated."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Pair(gold=row["gold"], answer="".join(piece * times for piece, times in row["parts"])) for row in rows]


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
