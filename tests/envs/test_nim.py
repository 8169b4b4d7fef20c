"""The rules of Nim, and whole games between scripted policies."""

from __future__ import annotations

import asyncio
import re
from itertools import product

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rollout_fakes import FakeEngine, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.envs.nim import RULES, Nim, after, moves, perfect_move, read_move
from agentrl.errors import ConfigError
from agentrl.llm import Reply
from agentrl.records import SamplingContract, Task
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler


class ScriptedLLM:
    """Moves as a function of policy and heaps says; keeps what it was asked."""

    def __init__(self, say):
        self.asked = []
        self._say = say

    async def chat(self, messages, *, policy="policy", train=True, **options):
        heaps = tuple(int(word) for word in messages[-1]["content"].rpartition(": ")[2].split())
        self.asked.append((policy, train, heaps, len(messages)))
        text = self._say(policy, heaps)
        return Reply(message={"role": "assistant", "content": text}, text=text)


def said(move):
    return f"{move[0] + 1} {move[1]}"


def game(say, heaps=(3, 4, 5), first=True, opponent="policy"):
    llm = ScriptedLLM(say)
    task = Task.from_row("nim", {"heaps": list(heaps), "first": first, "seed": 1})
    return asyncio.run(Nim(opponent=opponent).episode(task, llm)), llm


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("2 3", (1, 3)),
        ("2, 3", (1, 3)),
        (" 1:1\n", (0, 1)),
        ("so \\boxed{3 5}", (2, 5)),
        ("<think>1 1</think>2 1", (1, 1)),
        ("2 5", None),
        ("4 1", None),
        ("0 1", None),
        ("1 0", None),
        ("2", None),
        ("take 2 3", None),
        ("2 3 4", None),
        ("", None),
        ("<think>perhaps \\boxed{1 1}", None),
        ("\\boxed{1 1}, no: \\boxed{2 3}", (1, 3)),
    ],
)
def test_an_answer_is_a_move_or_none(text, move):
    assert read_move(text, (3, 4, 5)) == move


def test_the_perfect_move_wins_wherever_one_can_win():
    lost = {(0, 0, 0)}
    for heaps in sorted(product(range(5), repeat=3), key=sum):
        wins = any(after(heaps, move) in lost for move in moves(heaps))
        if not wins:
            lost.add(heaps)
        elif any(heaps):
            assert after(heaps, perfect_move(heaps)) in lost


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple))
def test_every_allowed_move_can_be_said(heaps):
    for move in moves(heaps):
        assert read_move(said(move), heaps) == move
        assert sum(after(heaps, move)) == sum(heaps) - move[1]


def test_who_takes_the_last_stick_wins():
    def play_well(policy, heaps):
        return said(perfect_move(heaps)) if policy == "policy" else said(moves(heaps)[0])

    assert game(play_well, opponent="weak")[0] == {"win": 1.0}
    assert game(lambda policy, heaps: play_well("policy" if policy == "weak" else "weak", heaps), opponent="weak")[0] == {"win": 0.0}


def test_a_move_against_the_rules_loses_for_either_side():
    assert game(lambda policy, heaps: "9 9")[0] == {"win": 0.0}
    assert game(lambda policy, heaps: "9 9", first=False)[0] == {"win": 1.0}


def test_each_seat_has_a_conversation_of_its_own_and_only_ours_is_trained():
    _, llm = game(lambda policy, heaps: said(moves(heaps)[0]), heaps=(2, 1, 1), opponent="past")
    assert [(policy, train) for policy, train, _, _ in llm.asked] == [("policy", True), ("past", False)] * 2
    assert [length for _, _, _, length in llm.asked] == [1, 1, 3, 3]


@pytest.mark.parametrize("opponent", ["random", "perfect"])
def test_a_program_can_be_the_opponent(opponent):
    score, llm = game(lambda policy, heaps: said(perfect_move(heaps)), opponent=opponent)
    assert score == {"win": 1.0}
    assert {policy for policy, *_ in llm.asked} == {"policy"}


def test_the_splits_share_no_start():
    environment = Nim()
    train = {tuple(sorted(row["heaps"])) for row in environment.tasks("train")[:4000]}
    held_out = {tuple(sorted(row["heaps"])) for row in environment.tasks("eval")}
    assert not train & held_out
    assert len(environment.tasks("eval")) >= 200
    assert RULES.isascii()


@pytest.mark.parametrize("options", [{"heaps": 0}, {"most": 0}, {"most": 100}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ConfigError, match="nim: heaps must lie"):
        Nim(**options)


def test_a_game_that_the_calls_do_not_suffice_for_is_not_won():
    tokenizer = make_tokenizer()

    def one_stick(request):
        heaps = re.findall(r"Heaps: ([\d ]+)", tokenizer.decode(request.ids))[-1].split()
        return f"{next(at for at, size in enumerate(heaps, start=1) if size != '0')} 1"

    policy = Sampler(engine=FakeEngine(one_stick, tokenizer), renderer=Renderer(tokenizer), contract=SamplingContract())

    async def main():
        async with thread_pool("nim") as pool:
            task = Task.from_row("nim", {"heaps": [9, 9, 9], "first": True, "seed": 1})
            sampling, rollout = SamplingConfig(max_turns=6), RolloutConfig()
            return await play_episode(task, 0, sampler=policy, others={}, pool=pool, sampling=sampling, rollout=rollout, seed=0)

    rollout = trio.run(main)
    assert (rollout.ending, rollout.score.parts) == ("truncated", {"win": 0.0})
    assert [turn.trained for turn in rollout.turns] == [True, False] * 3
    assert [turn.parent for turn in rollout.turns] == [-1, -1, 0, 1, 2, 3]
