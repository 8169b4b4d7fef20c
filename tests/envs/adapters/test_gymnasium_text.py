"""gymnasium's own toy environments, and some odd ones, with the real package."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import pytest
from adapter_plays import goldens, play, spoken, task_of

from agentrl import registry
from agentrl.envs.adapters.gymnasium_describe import action_names, best_actions, in_words, observed
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task

registry.import_module(str(Path(__file__).parent / "odd_gym.py"))
LAKE = "gymnasium:FrozenLake-v1?is_slippery=false"


@pytest.mark.parametrize(
    ("spec", "returned"),
    [(LAKE, 1.0), (f"{LAKE}&random_map=6", 1.0), ("gymnasium:CliffWalking-v1", -13.0), ("gymnasium:Taxi-v4", None)],
)
def test_the_known_best_play_earns_its_reward_and_ends_the_game(spec, returned):
    task = task_of(spec, 2)
    moves = goldens(spec, task)
    (rollout,) = play(spec, [task], moves)
    assert rollout.ending == "complete"
    assert len(rollout.turns) == len(moves)
    parts = {"steps": len(moves), "invalid": 0.0, "forfeit": 0.0, "terminated": 1.0, "turns": rollout.score.value}
    assert rollout.score.parts == parts
    assert rollout.score.value == (21.0 - len(moves) if returned is None else returned)  # a taxi ride: 20 at the end, -1 a step before
    assert sum(turn.reward for turn in rollout.turns) == rollout.score.value
    assert rollout.messages[-1]["content"].endswith("The game is over.")


def test_the_same_play_as_calls_of_a_tool():
    spec = f"{LAKE}&tools=true"
    task = task_of(spec)
    rollout, silent = play(spec, [task] * 2, goldens(spec, task), ["down"])
    assert rollout.score.value == 1.0
    assert rollout.counters["tool/calls"] == 6
    assert [message["role"] for message in rollout.messages[:3]] == ["user", "assistant", "tool"]
    assert silent.messages[2]["content"] == "invalid: call the tool act"
    assert len(silent.turns) == 3
    assert silent.score.value == 0.0


def test_actions_go_by_name_or_number_and_nothing_else():
    task = task_of(LAKE)
    (rollout,) = play(
        f"{LAKE}&max_invalid=20&invalid_reward=-0.25",
        [task],
        ["Down", "1", "\\boxed{right}", "I go down", "4", "-1", "", "left or right", "down", "2", "answer: 2"],
    )
    said = [message["content"] for message in rollout.messages if message["role"] == "user"][1:]
    assert [text.partition(":")[0] == "invalid" for text in said] == [False] * 3 + [True] * 5 + [False] * 3
    assert said[3] == "invalid: 'I go down' is no action; write one of: left, down, right, up"
    assert rollout.score.parts["invalid"] == 5.0
    assert rollout.score.value == 1.0 - 5 * 0.25


def test_invalid_answers_end_the_game_and_never_pay():
    spec = "gymnasium:CliffWalking-v1?max_turns=50"
    task = task_of(spec)
    gave_up, walked, cut = play(spec, [task] * 3, ["what?"], ["left"], ["l" * 2000])
    assert gave_up.messages[-1]["content"].endswith("Too many invalid answers: the game is over.")
    assert len(gave_up.turns) == 3
    assert walked.score.value == -50.0
    assert walked.ending == "truncated"
    assert cut.ending == "truncated"
    assert len(cut.turns) == 1
    assert gave_up.score.value < walked.score.value  # each step costs, so leaving early must not be a way to save it
    assert cut.score.value < walked.score.value
    assert gave_up.score.parts["forfeit"] == gave_up.score.value


def test_what_a_forfeit_costs_can_be_said():
    spec = "gymnasium:CliffWalking-v1?max_turns=10&forfeit=-2&max_invalid=1"
    (rollout,) = play(spec, [task_of(spec)], ["left", "?"])
    assert rollout.score.value == -1.0 - 2.0 * 9


def test_games_side_by_side_share_nothing_and_seeds_decide():
    spec = "gymnasium:FrozenLake-v1?random_map=5"  # slippery: the seed draws each slide
    tasks = [task_of(spec, index) for index in (0, 1, 2)]
    moves = ["right", "down"] * 10
    together = play(spec, [*tasks, *tasks], moves)
    alone = [play(spec, [task], moves)[0] for task in tasks]
    for number, rollout in enumerate(alone):
        assert together[number].messages == rollout.messages == together[number + 3].messages
    assert alone[0].messages[0] != alone[1].messages[0]
    slides = [play("gymnasium:FrozenLake-v1", [task_of("gymnasium:FrozenLake-v1", index)], moves)[0].messages for index in range(4)]
    assert len({str(one) for one in slides}) > 1


def test_blackjack_is_told_in_words():
    spec = "gymnasium:Blackjack-v1"
    script = spoken(lambda text: "stick" if int(text.split("your cards: ")[-1][:2].strip(" ;")) >= 17 else "hit")
    rollouts = play(spec, [task_of(spec, index) for index in range(12)], script)
    assert {rollout.score.value for rollout in rollouts} == {-1.0, 1.0} or {rollout.score.value for rollout in rollouts} == {-1.0, 0.0, 1.0}
    assert all(rollout.score.parts["terminated"] for rollout in rollouts)


def test_an_action_that_is_text():
    spec = "gymnasium:agentrl_tests/Echo-v0"
    task = task_of(spec)
    right, odd = play(spec, [task] * 2, spoken(lambda text: text.split("say: ")[-1][:3]), ["zzz"])
    assert right.score.value == 1.0
    assert odd.messages[2]["content"] == "invalid: 'zzz' is not allowed here"
    assert registry.load(spec)().golden(task) is None


def test_the_numbers_of_actions_start_where_the_space_does():
    (rollout,) = play("gymnasium:agentrl_tests/Odd-v0?max_turns=3", [task_of("gymnasium:agentrl_tests/Odd-v0")], ["6", "5", "0"])
    assert "5, 6" in rollout.messages[0]["content"]
    assert [turn.reward for turn in rollout.turns] == [1.0, 0.0, 0.0]
    assert rollout.score.parts["invalid"] == 1.0


def test_the_librarys_own_limit_truncates():
    (rollout,) = play("gymnasium:agentrl_tests/Short-v0", [task_of("gymnasium:agentrl_tests/Short-v0")], ["6"])
    assert rollout.score.value == 3.0
    assert rollout.score.parts["terminated"] == 0.0
    assert rollout.messages[-1]["content"].endswith("The game is over.")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "step raised RuntimeError: the emulator died"),
        ("short", "step returned .*allowed: .observation, reward, terminated, truncated, info"),
        ("nan", "step rewarded nan; allowed: a finite number"),
    ],
)
@pytest.mark.parametrize("tools", ["false", "true"])
def test_a_broken_game_is_unscorable(fault, reason, tools):
    game = gymnasium.spec("agentrl_tests/Odd-v0").entry_point
    environment = registry.load(f"gymnasium:agentrl_tests/Odd-v0?tools={tools}")()
    environment.start(Task.from_row("odd", {"seed": 1}))
    environment._environment.unwrapped.fault = fault
    act = environment.toolbox()[0].call if tools == "true" else environment.reply
    act("6")
    with pytest.raises(EnvironmentFailure, match=f"gymnasium:agentrl_tests/Odd-v0: {reason}"):
        act("6")
    before = game.closed
    environment.close()
    environment.close()
    assert game.closed == before + 1


def test_a_broken_game_ends_its_own_episode_as_unscorable():
    odd = gymnasium.spec("agentrl_tests/Odd-v0").entry_point
    calls = [f'<tool_call>{{"name": "act", "arguments": {{"action": "{action}"}}}}</tool_call>' for action in (6, 6)]
    for spec, script in (
        ("gymnasium:agentrl_tests/Odd-v0?max_turns=2", ["6"]),
        ("gymnasium:agentrl_tests/Odd-v0?max_turns=2&tools=true", calls),
    ):
        task = task_of(spec)
        odd.broken = True
        try:
            (rollout,) = play(spec, [task], script)
        finally:
            odd.broken = False
        assert (rollout.ending, rollout.score.value) == ("environment_error", None)
        assert "step raised RuntimeError: the emulator died" in rollout.reason


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gymnasium:FrozenLak-v1", "cannot make 'FrozenLak-v1' .*doesn't exist"),
        ("gymnasium:Pendulum-v1", "has actions in Box.*; a text can only choose from Discrete or be in Text"),
        ("gymnasium:FrozenLake-v1?map_name=null", "use random_map=8"),
        ("gymnasium:FrozenLake-v1?colour=red", "unexpected keyword argument 'colour'"),
        ("gymnasium:FrozenLake-v1?actions=[a, b]", "has 4 actions; got the names a, b"),
        ("gymnasium:FrozenLake-v1?actions=[a, b, c, A]", "has 4 actions; got the names a, b, c, A"),
        ("gymnasium:FrozenLake-v1?max_invalid=0", "max_invalid and max_turns must be at least 1, got 0"),
        ("gymnasium:not_there:Game-v0", "not_there is not installed in this Python"),
        ("gymnasium:agentrl_tests/Fails-v0", "reset raised OSError: no display"),
    ],
)
def test_what_cannot_be_played_is_refused_at_once(spec, said):
    with pytest.raises((ConfigError, EnvironmentFailure), match=said):
        registry.load(spec)()


def test_train_and_evaluation_have_no_seed_in_common():
    environment = registry.load(f"{LAKE}&size=300&eval_size=100")()
    seeds = [{row["seed"] for row in environment.tasks(split)} for split in ("train", "eval")]
    assert [len(one) for one in seeds] == [300, 100]
    assert not seeds[0] & seeds[1]


def test_values_in_words():
    spaces = gymnasium.spaces
    both = spaces.Dict({"at": spaces.Discrete(4), "pair": spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 1, (2,))))})
    assert in_words(both, {"at": 3, "pair": ([1, 0], [0.25, 1.0])}) == "at: 3\npair: [1, 0], [0.25, 1.0]"
    with pytest.raises(ConfigError, match="is no text"):
        in_words(spaces.Box(0, 255, (84, 84)), None)


def test_names_are_given_or_known_or_numbers():
    with gymnasium.make("Taxi-v4") as taxi:
        assert action_names(taxi) == ("south", "north", "east", "west", "pickup", "dropoff")
        assert action_names(taxi, "abcdef") == tuple("abcdef")
    with gymnasium.make("CartPole-v1") as pole:
        assert action_names(pole) == ("0", "1")


def test_a_taxi_is_told_in_words_and_a_lake_with_a_place_in_brackets():
    with gymnasium.make("Taxi-v4") as taxi:
        taxi.reset(seed=0)
        assert (
            observed(taxi, taxi.unwrapped.encode(1, 2, 4, 3)).splitlines()[-1]
            == "taxi: row 1, column 2; passenger: in the taxi; destination: B"
        )
    with gymnasium.make("FrozenLake-v1", render_mode="ansi", is_slippery=False) as lake:
        lake.reset(seed=0)
        lake.step(2)
        assert observed(lake, 1) == "  (Right)\nS[F]FF\nFHFH\nFFFH\nHFFG"


def test_no_best_play_where_chance_decides():
    with gymnasium.make("FrozenLake-v1") as lake, gymnasium.make("Blackjack-v1") as cards:
        assert best_actions(lake, 0, 100) is None
        assert best_actions(cards, 0, 100) is None
    with gymnasium.make("CliffWalking-v1") as cliff:
        assert best_actions(cliff, 36, 12) is None  # needs 13
        assert len(best_actions(cliff, 36, 13)) == 13
