"""Games of textarena, with the real package."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys

import odd_games  # registers its games
import pytest
from adapter_plays import episode_of, play, sampler, spoken, task_of

from agentrl import registry
from agentrl.envs.adapters.textarena_match import GameSpec, Match, facts_of, listed_moves
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import BudgetSpent, Reply
from agentrl.records import Task
from agentrl.rows import rows_of

TICTACTOE = "textarena:TicTacToe-v0"
ODD = sorted(name for name, rewards in odd_games.REWARDS.items() if name != "Fine")


class FakeModel:
    """An `LLM` whose answers a function of the newest message gives; notes who was asked, and what for."""

    def __init__(self, answer, *, most=1000):
        self.answer, self.most, self.asked = answer, most, []

    async def chat(self, messages, *, tools=(), policy="policy", max_tokens=None, train=True):
        await asyncio.sleep(0)
        if len(self.asked) == self.most:
            raise BudgetSpent("no token is left")
        self.asked.append((policy, train, [dict(message) for message in messages]))
        text = self.answer(messages[-1]["content"])
        return Reply(message={"role": "assistant", "content": text}, text=text, number=len(self.asked) - 1)


def duel(spec, index, answer, **options):
    environment = registry.load(spec)()
    model = FakeModel(answer, **options)
    task = Task.from_row(spec, environment.tasks("train")[index])
    return asyncio.run(environment.episode(task, model)), model, task


def first_move(text):
    return listed_moves(text)[0]


def test_a_game_for_one_is_a_chat_that_ends_with_the_games_reward():
    spec = "textarena:GuessTheNumber-v0?min_number=1&max_number=4"
    scripts = [[f"it is [{number}]"] for number in (1, 2, 3, 4)]
    rollouts = play(spec, [task_of(spec)] * 4, *scripts)
    assert "between 1 and 4" in rollouts[0].messages[0]["content"]
    right = [rollout for rollout in rollouts if len(rollout.turns) == 1]
    assert len(right) == 1
    assert right[0].score.value == 1.0
    assert right[0].messages[-1]["content"].startswith("The game is over. Congratulations")
    for rollout in rollouts:
        if rollout is not right[0]:
            assert rollout.score.parts == {"unfinished": 0.0, "invalid_move": 1.0}  # the same guess again is not allowed, twice
            assert rollout.score.value < 1.0
            assert "Please resubmit a valid move" in rollout.messages[4]["content"]
            assert [message["content"] for message in rollout.messages].count(rollout.messages[1]["content"]) == 3


def test_a_players_own_words_are_not_told_to_them_again():
    spec = "textarena:GuessTheNumber-v0"
    (rollout,) = play(spec, [task_of(spec)], ["surely [1]", "[2]"], max_turns=2)
    assert rollout.ending == "truncated"
    assert rollout.score.value == -1.0
    assert rollout.score.parts["unfinished"] == 1.0
    assert not any("surely" in message["content"] for message in rollout.messages if message["role"] == "user")


def test_a_match_against_itself_trains_one_seat():
    spec = TICTACTOE
    (rollout,) = play(spec, [task_of(spec, 0)], spoken(first_move))
    assert rollout.ending == "complete"
    assert rollout.score.value in (-1.0, 0.0, 1.0)
    assert "has won" in rollout.score.reason or "draw" in rollout.score.reason
    own = rollout.own_turns
    assert 3 <= len(own) <= 5
    assert len(own) < len(rollout.turns) <= 9
    trained = sum(int(row.trained.sum()) for row in rows_of(rollout))
    assert trained == sum(int(turn.span.sampled.sum()) for turn in own)
    for index, winner in ((0, 1.0), (1, -1.0)):  # the first free square each: the one who begins wins
        score, model, task = duel(spec, index, first_move)
        assert task.row["seat"] == index
        assert score.value == winner
        assert [train for _, train, _ in model.asked] == [turn % 2 == index for turn in range(len(model.asked))]


def test_the_other_seat_can_be_another_policy():
    spec = f"{TICTACTOE}?opponent=rival"
    rival = sampler(spoken(lambda text: listed_moves(text)[-1]), "rival")
    (rollout,) = play(spec, [task_of(spec, 1)], spoken(first_move), others=[rival])
    assert rollout.score.value is not None
    assert len(rollout.own_turns) == len(rollout.turns) - len(rival.engine.requests)
    assert len(rival.engine.requests) >= 3
    score, model, _ = duel(spec, 0, first_move)
    assert [(policy, train) for policy, train, _ in model.asked[:2]] == [("policy", True), ("rival", False)]
    assert score.value == 1.0


def test_each_player_sees_a_conversation_of_their_own():
    _, model, _ = duel("textarena:KuhnPoker-v0", 1, first_move)
    by_seat = {train: [messages for _, one, messages in model.asked if one is train] for train in (True, False)}
    for conversations in by_seat.values():
        for before, after in itertools.pairwise(conversations):
            assert after[: len(before)] == before
    cards = [conversations[0][0]["content"].split("Your card is")[-1][:5] for conversations in by_seat.values()]
    assert cards[0] != cards[1]


def test_a_wrapper_can_tell_all_in_one_message():
    spec = "textarena:TicTacToe-v0-train?memory=wrapper"
    (rollout,) = play(spec, [task_of(spec)], spoken(first_move))
    assert all(turn.parent == -1 for turn in rollout.turns)
    _, model, _ = duel(spec, 0, first_move)
    assert all(len(messages) == 1 for _, _, messages in model.asked)
    assert "Available Moves" in model.asked[2][2][0]["content"]


def test_a_random_opponent_plays_listed_moves_and_the_same_each_time():
    spec = f"{TICTACTOE}?opponent=random"
    scores = []
    for index in range(12):
        score, model, _ = duel(spec, index, first_move)
        again, repeated, _ = duel(spec, index, first_move)
        assert model.asked == repeated.asked
        assert (score.value, score.reason) == (again.value, again.reason)
        assert all(policy == "policy" and train for policy, train, _ in model.asked)
        assert score.parts["invalid_move"] == 0.0
        scores.append(score.value)
    assert 0 < sum(value == 1.0 for value in scores) < 12
    with pytest.raises(ConfigError, match="does not list its moves; give them as moves="):
        registry.load("textarena:IteratedRockPaperScissors-v0?opponent=random")()
    score, model, _ = duel("textarena:IteratedRockPaperScissors-v0?opponent=random&moves=['[rock]']", 0, lambda text: "[paper]")
    assert score.value == 1.0


def test_invalid_moves_are_as_the_game_says():
    score, model, _ = duel(TICTACTOE, 0, lambda text: "I pass")
    assert score.value == -1.0
    assert score.parts["invalid_move"] == 1.0
    assert len(model.asked) == 2  # one more try
    score, _, _ = duel(TICTACTOE, 1, lambda text: "I pass")
    assert score.value == 1.0  # the other one made it


def test_a_spent_budget_is_no_way_out():
    for most in (0, 1, 3):
        score, _, _ = duel(f"{TICTACTOE}?unfinished=-1.5", 0, first_move, most=most)
        assert score.value == -1.5
        assert score.parts["unfinished"] == 1.0
    (rollout,) = play(TICTACTOE, [task_of(TICTACTOE)], spoken(first_move), max_turns=2)
    assert rollout.score.value == -1.0


def test_the_move_is_read_as_asked():
    said = {"text": "maybe [8], but\n\\boxed{[0]}", "auto": "maybe [8], but\n\\boxed{[0]}", "tags": "<answer>[0]</answer>[8]"}
    for extract, answer in said.items():
        _, model, _ = duel(f"{TICTACTOE}?extract={extract}&opponent=random", 0, lambda text, answer=answer: answer, most=2)
        taken = "8" if extract == "text" else "0"
        assert f"'[{taken}]'" not in model.asked[1][2][-1]["content"]


def test_matches_side_by_side_draw_from_streams_of_their_own():
    spec = "textarena:OddFine-v0"
    tasks = [task_of(spec, index) for index in (0, 1, 2)]
    together = play(spec, tasks * 3, ["a", "b", "c", "end"])
    alone = [play(spec, [task], ["a", "b", "c", "end"])[0] for task in tasks]
    for number, rollout in enumerate(alone):
        assert {str(one.messages) for one in together[number::3]} == {str(rollout.messages)}
    assert alone[0].messages != alone[1].messages
    assert alone[0].score.value == 0.5
    state = random.getstate()
    duel(TICTACTOE, 0, first_move)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise", "textarena:OddFine-v0: step raised KeyError: 'no such square'"),
        ("exit", "textarena:OddFine-v0: step raised SystemExit: 3"),
        ("odd", "textarena:OddFine-v0: step returned None; allowed: .done, info."),
        ("number", r"an observation holds \(1, 2, 3\); allowed: .sender, text, kind."),
    ],
)
def test_a_broken_game_is_unscorable(answer, reason):
    environment = registry.load("textarena:OddFine-v0")()
    environment.start(Task.from_row("odd", {"seed": 1}))
    with pytest.raises(EnvironmentFailure, match=reason):
        environment.reply(answer)
    (rollout,) = play("textarena:OddFine-v0", [Task.from_row("odd", {"seed": 1})], [answer])
    assert rollout.score.value is None
    assert rollout.ending == "environment_error"


@pytest.mark.parametrize("kind", ODD)
def test_rewards_that_are_none_are_refused(kind):
    environment = registry.load(f"textarena:Odd{kind}-v0")()
    task = Task.from_row("odd", {"seed": 1})
    environment.start(task)
    environment.reply("end")
    with pytest.raises(EnvironmentFailure, match=f"textarena:Odd{kind}-v0: the reward"):
        environment.score(episode_of(task, "end"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("textarena:TicTacTo-v0", "no game 'TicTacTo-v0'; did you mean TicTacToe-v0"),
        ("textarena:TicTacToe-v0?colour=red", "unexpected keyword argument 'colour'"),
        ("textarena:TicTacToe-v0?memory=none", "memory must be one of chat, wrapper, got 'none'"),
        ("textarena:TicTacToe-v0?extract=none", "extract must be one of auto, tags, text"),
        ("textarena:TicTacToe-v0?players=3", "does not start: .*number of players has to be 2"),
        ("textarena:GuessTheNumber-v0?memory=wrapper", "memory=wrapper is for games of several"),
        ("textarena:TwentyQuestions-v0", "asks models at openrouter.ai to referee; to allow that, add network=true"),
        ("textarena:Debate-v0", "asks models at openrouter.ai"),
        ("textarena:Wordle-v0", "needs NLTK's 'words', which is not here; with a network: python -m nltk.downloader words"),
        ("textarena:SpellingBee-v0-small", "needs NLTK's 'words'"),
    ],
)
def test_what_cannot_be_played_is_refused_at_once(spec, said):
    with pytest.raises(ConfigError, match=said):
        registry.load(spec)()


def test_no_game_reaches_for_the_internet_when_it_is_refused():
    script = (
        "import sys; from agentrl import registry; from agentrl.errors import ConfigError\n"
        "try: registry.load('textarena:Hangman-v0')()\n"
        "except ConfigError: print(sorted(name for name in sys.modules if name.startswith('textarena.envs.Hang')))"
    )
    environment = {**os.environ, "NLTK_DATA": "/nowhere"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, env=environment)
    assert run.stdout == "[]\n"


def test_the_number_of_players_is_what_the_game_insists_on():
    assert facts_of(GameSpec(name="TicTacToe-v0")).players == 2
    assert facts_of(GameSpec(name="Mastermind-v0")).players == 1
    assert facts_of(GameSpec(name="ThreePlayerTicTacToe-v0")).players == 3
    score, model, task = duel("textarena:ThreePlayerTicTacToe-v0", 2, first_move)
    assert task.row["seat"] == 2
    assert [train for _, train, _ in model.asked[:3]] == [False, False, True]
    assert score.value is not None


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("Board\nAvailable Moves: '[0]', '[4]'", ["[0]", "[4]"]),
        ("Your available actions are: '[check]', '[bet]'", ["[check]", "[bet]"]),
        ("Valid moves: '[0, 1]', '[1, 0]'\nthen [2]", ["[0, 1]", "[1, 0]"]),
        ("Valid moves: '[check]' | '[bet X]'", []),
        ("Available actions: up, down", []),
        ("Available Moves: [1]\nlater\nAvailable Moves: [2]", ["[2]"]),
        ("Say [something]", []),
    ],
)
def test_moves_are_read_where_they_are_listed(text, moves):
    assert listed_moves(text) == moves


def test_three_games_that_give_their_words_in_another_order_can_be_seen():
    match = Match(GameSpec(name="Countdown-v0"), seed=0, players=1)
    assert match.observe()[1].startswith("You are playing Countdown")
    match.act("[0 1 +]")
    player, text = match.observe()
    assert player == 0
    assert "[0 1 +]" not in text
    assert "TARGET" in text


@pytest.mark.slow
def test_a_thousand_moves_of_random_play_stay_inside_the_boundary():
    specs = ["TicTacToe-v0", "KuhnPoker-v0", "SimpleTak-v0", "Othello-v0-tiny", "PigDice-v0", "Nim-v0", "ConnectFour-v0", "Mastermind-v0"]
    stream = random.Random(0)
    words = ["", "[0]", "[3]", "[bet]", "[1 2]", "\x00", "[" * 500, "[" + "9" * 400 + "]", "\ud800", "[roll]", "[-1]", "{}", "[0 0 0 0]"]
    for name in specs:
        for seed in range(20):
            match = Match(GameSpec(name=name), seed=seed, players=facts_of(GameSpec(name=name)).players)
            for _ in range(40):
                player, text = match.observe()
                moves = listed_moves(text)
                match.act(stream.choice(moves) if moves and stream.random() < 0.9 else stream.choice(words))
                if match.over:
                    assert -1.0 <= match.reward(player) <= 1.0
                    break
