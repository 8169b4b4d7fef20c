import pytest

from agentrl.envs.countdown import countdown, countdown_reward, solves
from agentrl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "solved"),
    [
        ("(10+2)*3", True),
        ("3*(2+10) = 36", True),
        ("3\\times(2+10)", True),
        ("3*(2+10) = 35", False),
        ("36", False),
        ("10*3+2*3", False),
        ("10*3+2", False),
        ("(10+2)*3*1", False),
        ("(10+2)*3; print()", False),
        ("1/0", False),
        ("", False),
    ],
)
def test_solutions(text, solved):
    assert solves(text, numbers=[10, 2, 3], target=36) is solved


def test_fractions_on_the_way_are_exact():
    assert solves("8/(3-8/3)", numbers=[3, 3, 8, 8], target=24)


@pytest.mark.parametrize("numbers", [2, 3, 4, 6])
def test_tasks_are_lazy_stable_and_apart(numbers):
    train, held_out = (countdown(numbers=numbers, largest=30).tasks(split)[:100] for split in ("train", "eval"))
    assert train == countdown(numbers=numbers, largest=30).tasks("train")[:100]
    assert all(len(row["numbers"]) == numbers and 1 <= row["target"] <= 999 for row in train)
    keys = [{tuple(sorted(row["numbers"])) for row in rows} for rows in (train, held_out)]
    assert not keys[0] & keys[1]
    assert all(f"Make {row['target']} " in row["prompt"][0]["content"] for row in train)


def test_reward_takes_the_last_box():
    values = countdown_reward(
        prompts=[""] * 4,
        completions=["\\boxed{5}, \\boxed{2+3}", "2+3", [{"role": "assistant", "content": "\\boxed{2*3}"}], "\\boxed{2+3"],
        completion_ids=[[]] * 4,
        numbers=[[2, 3]] * 4,
        target=[5] * 4,
    )
    assert values == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("arguments", [{"numbers": 1}, {"numbers": 7}, {"largest": 1}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ConfigError, match="countdown"):
        countdown(**arguments)
