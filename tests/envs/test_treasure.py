"""The text game: every house can be won, and nothing else wins."""

from __future__ import annotations

import pytest
import trio
from rollout_fakes import FakeEngine, in_turn, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.envs.treasure import House, Treasure
from agentrl.errors import ConfigError
from agentrl.records import SamplingContract, Task
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler

TOKENIZER = make_tokenizer()


@pytest.mark.parametrize("rooms", [4, 9, 25])
def test_every_house_can_be_won_by_its_golden_commands(rooms):
    environment = Treasure(rooms=rooms)
    for row in [*environment.tasks("train")[:40], *environment.tasks("eval")[:40]]:
        task = Task.from_row("treasure", row)
        house = House(row)
        assert not house.won
        for command in environment.golden(task):
            assert "cannot" not in house.act(command)
        assert house.won
        assert len(row["rooms"]) == rooms


def test_the_vault_is_shut_without_the_key():
    row = Treasure().tasks("train")[3]
    house = House(row)
    commands = house.solution()
    unlocking = commands.index("unlock")
    for command in [one for one in commands[:unlocking] if one != "take key"]:
        house.act(command)
    assert "cannot unlock" in house.act("unlock")
    assert house.act(commands[unlocking + 1]) == "The door is locked."
    assert not house.won


@pytest.mark.parametrize("command", ["", "go up", "go", "take", "win", "take treasure", "unlock", "go north; take key"])
def test_what_is_no_command_here_changes_nothing(command):
    house = House(Treasure().tasks("train")[0])
    before = house.here
    house.act(command)
    assert house.here == before
    assert [house.has_key, house.has_treasure, house.unlocked] == [False] * 3


def play(row, *said, shaped=False, **sampling):
    sampler = Sampler(engine=FakeEngine(in_turn(*said), TOKENIZER), renderer=Renderer(TOKENIZER), contract=SamplingContract())

    async def main():
        async with thread_pool(f"agentrl.envs.treasure:Treasure?rooms=6&shaped={str(shaped).lower()}") as pool:
            task = Task.from_row("treasure", row)
            return await play_episode(
                task, 0, sampler=sampler, others={}, pool=pool, sampling=SamplingConfig(**sampling), rollout=RolloutConfig(), seed=0
            )

    return trio.run(main)


def test_a_whole_game_is_won_turn_by_turn():
    row = Treasure(rooms=6).tasks("train")[1]
    commands = House(row).solution()
    rollout = play(row, *(f"<think>well</think>I will:\n{command.title()}." for command in commands), max_turns=50)
    assert (rollout.ending, rollout.score.value) == ("complete", 1.0)
    assert len(rollout.turns) == len(commands)
    shaped = play(row, *commands, shaped=True, max_turns=50)
    assert shaped.score.value == 1.5
    assert sum(turn.reward > 0 for turn in shaped.turns) == 2


def test_a_game_that_is_not_won_in_time_is_truncated_and_scores_nothing():
    rollout = play(Treasure(rooms=6).tasks("train")[1], "go nowhere", max_turns=5)
    assert (rollout.ending, rollout.score.value, len(rollout.turns)) == ("truncated", 0.0, 5)


def test_the_splits_share_no_house():
    environment = Treasure(rooms=6)
    train, held_out = (
        {str((row["doors"], row["vault"], row["key"])) for row in environment.tasks(split)[:400]} for split in ("train", "eval")
    )
    assert not train & held_out


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="rooms must lie in 4 to 40, got 3"):
        Treasure(rooms=3)
