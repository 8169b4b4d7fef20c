import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sandbox_watch import wait_until

from agentrl.rewards.grader_parent import GraderUnavailable
from agentrl.rewards.grader_pool import GraderPool, Pair, shared_pool
from agentrl.rewards.grades import Grade
from agentrl.rewards.math_answer import grade
from agentrl.rewards.math_compare import Policy

CASES = Path(__file__).parent.parent / "cases"
HANGS = Pair(gold="\\pi", answer="\\boxed{\\int \\int \\int e^{xyz} dx dy dz}")
HALF = Pair(gold="\\frac{\\pi}{2}", answer="\\boxed{0.5\\pi}")


def rows(name):
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


def bombs():
    return [Pair(gold=row["gold"], answer="".join(piece * times for piece, times in row["parts"])) for row in rows("math_bombs.jsonl")]


@pytest.fixture(scope="module")
def pool():
    # CPU seconds are what these tests are about: on a busy machine the clock's 10 s may pass first, which is told as that and is no verdict
    with GraderPool(workers=2, wall_s=240) as made:
        yield made


def processes(pool):
    """Names of the states of the parent's processes, by process id; its workers below it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pool.process_id:
            found[int(folder.name)] = fields[0]
    return found


def test_verdicts_are_those_of_the_same_process(pool):
    pairs = [Pair(gold=row["gold"], answer=row["answer"]) for row in rows("math_grading.jsonl")]
    assert [result.verdict for result in pool.grade_many(pairs)] == [grade(gold=one.gold, answer=one.answer).verdict for one in pairs]


def test_a_hang_costs_its_own_row_only(pool):
    pairs = [HALF, HANGS, HALF, Pair(gold="\\pi", answer="3\\pi"), HANGS, HALF]
    results = pool.grade_many(pairs)
    assert [result.verdict for result in results] == ["correct", "wrong", "correct", "wrong", "wrong", "correct"]
    assert "CPU seconds" in results[1].reason
    assert "Z" not in processes(pool).values()


def test_a_gold_that_hangs_is_unscorable(pool):
    result = pool.grade(Pair(gold=HANGS.answer, answer="\\pi"))
    assert result.verdict == "unscorable"
    assert "the gold takes more than" in result.reason
    assert pool.gold_fault(HANGS.answer) == result.reason
    assert pool.gold_fault("\\frac{\\pi}{2}") == ""


@pytest.mark.parametrize("case", rows("math_deadline.jsonl"), ids=lambda case: case["answer"])
def test_deadlines(pool, case):
    pool.grade(HALF)
    started = time.perf_counter()
    assert pool.grade(Pair(gold=case["gold"], answer=case["answer"])).verdict in case["verdict_in"]
    assert time.perf_counter() - started < case["within_s"]


def test_a_worker_that_gets_no_cpu_is_given_up_on_the_clock():
    with GraderPool(workers=1, cpu_s=1000, wall_s=0.5) as pool:
        result = pool.grade(HANGS)
        assert result.verdict == "unscorable"
        assert "0.5 s on the clock" in result.reason
        assert processes(pool) == {}
        assert wait_until(lambda: pool.grade(HALF).verdict == "correct", 60)  # a busy machine may not have 0.5 s for that one either


def test_memory_is_limited():
    with GraderPool(workers=1, memory_mib=1, cpu_s=30, wall_s=240) as pool:
        result = pool.grade(Pair(gold="x", answer="+".join(f"\\sqrt{{{n}+x}}" for n in range(60))))
    assert result.verdict == "wrong"
    assert result.reason


def test_many_threads_share_a_pool(pool):
    verdicts = [None] * 40
    pairs = [HALF if at % 2 else Pair(gold="\\pi", answer="2\\pi") for at in range(len(verdicts))]

    def one(at):
        verdicts[at] = pool.grade(pairs[at]).verdict

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(verdicts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == ["wrong", "correct"] * 20
    assert len(processes(pool)) <= 2


def test_without_a_free_worker_in_time_an_answer_is_unscorable():
    results = []
    with GraderPool(workers=1, cpu_s=1000, wall_s=2, wait_s=0.05) as pool:
        pool.grade(HALF)
        thread = threading.Thread(target=lambda: results.append(pool.grade(HANGS)))
        thread.start()
        assert wait_until(pool._places.empty, 60)  # else the worker may be free again before this thread asks for it
        results.append(pool.grade(HANGS))
        thread.join(60)
    assert [result.verdict for result in results] == ["unscorable"] * 2
    assert sorted("busy" in result.reason for result in results) == [False, True]


def test_numbers_and_words_start_no_process():
    with GraderPool() as pool:
        pairs = [("42", "\\boxed{42.0}"), ("yes", "no"), ("", "4"), ("\\frac12", "1/2"), ("(1,2)", "(2,1)"), ("4", "((((")]
        verdicts = [pool.grade(Pair(gold=gold, answer=answer)).verdict for gold, answer in pairs]
        assert verdicts == ["correct", "wrong", "unscorable", "correct", "wrong", "wrong"]
        assert pool.process_id is None


def test_what_was_killed_starts_again(pool):
    pool.grade(HALF)
    for pid in processes(pool):
        os.kill(pid, signal.SIGKILL)
    assert pool.grade(HALF).verdict == "correct"
    os.kill(pool.process_id, signal.SIGKILL)
    assert pool.grade(HALF).verdict == "correct"


def test_nothing_is_left_after_the_end():
    pool = GraderPool()
    pool.grade(HALF)
    parent, workers = pool.process_id, list(processes(pool))
    assert workers
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in (parent, *workers))
    assert pool.grade(HALF).verdict == "correct"
    pool.close()


def test_policies_travel(pool):
    policy = Policy(interval_for_inequality=True)
    assert pool.grade(Pair(gold="(\\sqrt{2},\\infty)", answer="x>\\sqrt{2}", policy=policy)).verdict == "correct"
    assert pool.grade(Pair(gold="(\\sqrt{2},\\infty)", answer="x>\\sqrt{2}")).verdict == "wrong"


def test_rows_come_in_order_and_graded_ones_pass(pool):
    given = Grade(verdict="unscorable", reason="mine")
    pairs = [one for _ in range(100) for one in (HALF, given, Pair(gold="5", answer="6"))]
    assert [result.verdict for result in pool.grade_each(pairs)] == ["correct", "unscorable", "wrong"] * 100


def test_the_shared_pool_is_one():
    assert shared_pool() is shared_pool()


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="workers >= 1"):
        GraderPool(workers=0)
    with pytest.raises(ValueError, match="cpu_s > 0"):
        GraderPool(cpu_s=0)


def test_a_process_that_does_not_start_is_infrastructure():
    with GraderPool(memory_mib=-1) as pool, pytest.raises(GraderUnavailable, match="did not start"):
        pool.grade(HALF)


@pytest.mark.slow
def test_64_bombs_among_1000_answers_leave_the_others_alone(pool):
    normal = [Pair(gold=f"\\frac{{{n}\\pi}}{{3}}", answer=f"\\boxed{{\\frac{{{2 * n + n % 2}\\pi}}{{6}}}}") for n in range(1, 1001)]
    pathological = bombs()
    assert len(pathological) == 64
    alone = [result.verdict for result in pool.grade_many(normal)]
    mixed = [one for at, pair in enumerate(normal) for one in ([pathological[at // 15], pair] if at % 15 == 0 and at < 960 else [pair])]
    results = pool.grade_many(mixed)
    assert [result.verdict for pair, result in zip(mixed, results, strict=True) if pair not in pathological] == alone
    assert alone == ["wrong", "correct"] * 500
    assert all(result.verdict != "correct" for pair, result in zip(mixed, results, strict=True) if pair in pathological)
    assert "Z" not in processes(pool).values()
