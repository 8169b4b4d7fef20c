"""Judges of pairs, and rivals: groups with a scripted engine and environments in workers."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from fakes import make_rollout
from rollout_fakes import ENV, FakeEngine, make_task, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.environment import Episode
from agentrl.records import SamplingContract
from agentrl.rollout.episode import play_group
from agentrl.rollout.judge import judged_group
from agentrl.rollout.pool import EnvPool
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler, request_seed

TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)
TASK = make_task(prompt=[{"role": "user", "content": "hi"}])
POLICY, RIVAL = SamplingContract(), SamplingContract(policy="reference", temperature=0.5)


def play(*answers, name="Judged", pool=None, judged=True, rival=None):
    """Play a group whose members give these answers; also the requests by member."""
    members = {request_seed(f"3\n{TASK.id}\n{member}", 0): member for member in range(len(answers))}
    engine = FakeEngine(lambda request: answers[members[request.seed]], TOKENIZER)

    async def main():
        async with pool or thread_pool(f"{ENV}:{name}") as environments:
            return await play_group(
                TASK,
                len(answers),
                sampler=Sampler(engine=engine, renderer=RENDERER, contract=POLICY),
                others={},
                pool=environments,
                sampling=SamplingConfig(),
                rollout=RolloutConfig(),
                seed=3,
                rival=rival,
                judged=judged,
            )

    return trio.run(main), {members[request.seed]: request for request in engine.requests}


def failed(group):
    return [rollout.counters.get("judge/failed") for rollout in group]


@pytest.mark.parametrize("name", ["Judged", "JudgedLater"])
def test_a_member_of_the_first_half_meets_its_counterpart_of_the_second(name):
    group, _ = play("long", "same", "s", "l", "emas", "short", name=name)
    assert group.preferences == (1.0, 0.5, 0.0)
    assert [rollout.member for rollout in group] == list(range(6))
    assert failed(group) == [None] * 6


def test_a_judge_may_not_know_and_may_be_sure():
    group, _ = play("none", "true", "a", "b")
    assert group.preferences == (None, 1.0)
    assert failed(group) == [None] * 4


def test_a_judge_that_fails_costs_its_own_pair_only(capsys):
    firsts = ["raise", "nan", "two", "minus", "text", "list", "longer"]
    group, _ = play(*firsts, *["x"] * len(firsts))
    assert group.preferences == (*[None] * 6, 1.0)
    assert failed(group) == [1.0] * 6 + [None] * 8
    assert all(rollout.score.value == 0.0 for rollout in group)
    said = capsys.readouterr().err
    assert f"task {TASK.id}, members 0 and 7 have no preference: environment {ENV}:Judged, compare: ZeroDivisionError" in said
    assert "compare: compare returned 2.0; allowed: a number from 0 (the second episode is better) to 1" in said


def test_a_judge_that_hangs_is_killed():
    # of the four scores and the other pair as well, which take no time: long enough for a machine that does much else
    pool = EnvPool(f"{ENV}:Judged", [], RolloutConfig(env_workers=1, score_timeout_s=10))
    group, _ = play("hang", "longer", "x", "x", pool=pool)
    assert group.preferences == (None, 1.0)
    assert failed(group) == [1.0, None, None, None]


def test_pairs_with_an_unscorable_member_are_not_judged():
    group, _ = play("unscorable", "a", "longer", "b", "unscorable", "x")
    assert group.preferences == (None, None, 1.0)
    assert failed(group) == [None] * 6


def test_an_environment_without_a_judge_fails_on_every_pair(capsys):
    group, _ = play("bye", "bye", name="Dialog")
    assert (group.preferences, failed(group)) == ((None,), [1.0, None])
    assert "NotImplementedError: Dialog must define compare(first, second)" in capsys.readouterr().err


def test_a_dataset_with_a_judge_needs_no_rewards():
    group, _ = play("long", "a", "same", "s", "long", "emas", name="judged_single")
    assert group.preferences == (0.0, 1.0, None)
    assert [rollout.score.value for rollout in group] == [0.0] * 6
    assert failed(group) == [None] * 6


@pytest.mark.parametrize(("members", "pairs"), [(1, 0), (3, 1), (5, 2)])
def test_the_last_of_an_odd_group_has_no_counterpart(members, pairs):
    group, requests = play(*["a"] * members, rival=RIVAL)
    assert group.preferences == (0.5,) * pairs
    contracts = [requests[member].contract for member in range(members)]
    assert contracts == [POLICY] * pairs + [RIVAL] * (members - pairs)


def test_a_group_that_is_not_judged_has_no_preferences():
    group, _ = play("raise", "a", judged=False)
    assert (group.preferences, failed(group)) == ((), [None, None])


def test_rivals_sample_and_are_recorded_by_their_own_contract():
    group, requests = play("a", "b", "c", "d", rival=RIVAL, judged=False)
    assert [requests[member].contract for member in range(4)] == [POLICY, POLICY, RIVAL, RIVAL]
    assert [rollout.turns[0].contract for rollout in group] == [POLICY, POLICY, RIVAL, RIVAL]
    alone, _ = play("a", "b", "c", "d", judged=False)
    assert {rollout.turns[0].contract for rollout in alone} == {POLICY}


class SlowPool:
    """Judges that take ten seconds each, on the test's own clock."""

    def __init__(self):
        self.log = []

    async def open(self, task):
        self.log.append("opened")
        return self

    async def compare(self, first, second):
        await trio.sleep(10)
        return 0.25

    def close(self):
        self.log.append("closed")


def judge_slowly(cancel_after):
    pool = SlowPool()
    rollouts = [make_rollout(0.0, member=member) for member in range(4)]
    episodes = [Episode(task=TASK, prompt="", messages=[], completion_ids=[], ending="complete")] * 4

    async def main():
        started = trio.current_time()
        with trio.move_on_after(cancel_after):
            return (await judged_group(rollouts, episodes, pool)).preferences, trio.current_time() - started

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)), pool.log


def test_pairs_are_judged_side_by_side():
    assert judge_slowly(float("inf")) == (((0.25, 0.25), 10.0), ["opened", "opened", "closed", "closed"])


def test_cancelling_closes_the_judges():
    assert judge_slowly(5) == (None, ["opened", "opened", "closed", "closed"])
