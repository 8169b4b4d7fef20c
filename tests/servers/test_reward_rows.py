from __future__ import annotations

import pytest

from agentrl.errors import ConfigError
from agentrl.servers.reward_rows import RewardOptions, RewardRow, aggregated, rows_of_request

ASK, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(("how", "value"), [("min", 0.25), ("mean", 0.5), ("last", 0.75), ("product", 0.09375)])
def test_one_number_of_several_steps(how, value):
    assert aggregated([0.5, 0.25, 0.75], how) == value
    assert aggregated([0.5], how) == 0.5


def test_the_rows_of_a_request():
    assert rows_of_request({"prompts": ["a", "b"], "completions": ["c", ""]}, 2)[1] == RewardRow(prompt="b", completion="")
    (row,) = rows_of_request({"prompts": [[ASK]], "completions": [[ANSWER]]}, 2)
    assert rows_of_request({"messages": [[ASK, ANSWER]]}, 2) == [row] == [RewardRow(prompt=[ASK], completion=[ANSWER])]
    assert rows_of_request({"prompts": ["a"], "steps": [["b", "c"]]}, 2)[0].steps == ("b", "c")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "the body is a JSON object"),
        ({}, "give `prompts` with"),
        ({"prompts": ["a"], "completions": ["b"], "model": "x"}, "the body is a JSON object"),
        ({"prompts": ["a"]}, "give `prompts` with"),
        ({"completions": ["a"], "steps": [["b"]]}, "give `prompts` with"),
        ({"prompts": ["a"], "completions": ["b"], "steps": [["c"]]}, "give `prompts` with"),
        ({"messages": [[ASK]], "prompts": ["a"]}, "leave out prompts"),
        ({"prompts": "a", "completions": "b"}, "`prompts` is a list of 1 to 2 rows"),
        ({"prompts": [], "completions": []}, "`prompts` is a list of 1 to 2 rows"),
        ({"messages": [[ASK]] * 3}, "`messages` is a list of 1 to 2 rows"),
        ({"prompts": ["a", "b"], "completions": ["c"]}, "got 2 prompts and 1 completions"),
        ({"prompts": ["a"], "completions": [[ANSWER]]}, "row 0: prompt and completion are both"),
        ({"prompts": ["a"], "completions": [None]}, "row 0: prompt and completion are both"),
        ({"prompts": [[ASK]], "completions": [[{"content": "4"}]]}, "row 0: prompt and completion are both"),
        ({"prompts": [[ASK]], "completions": [[{"role": "assistant", "content": 4}]]}, "row 0: prompt and completion are both"),
        ({"prompts": ["a"], "steps": ["b"]}, "row 0: its steps are a list"),
        ({"prompts": ["a"], "steps": [[]]}, "row 0: its steps are a list"),
        ({"prompts": [5], "steps": [["b"]]}, "row 0: the prompt is a text"),
        ({"messages": [[]]}, r"messages\[0\] is no list"),
        ({"messages": ["x"]}, r"messages\[0\] is no list"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(body, said):
    with pytest.raises(ValueError, match=said):
        rows_of_request(body, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggregate": "max"},
        {"kind": "both"},
        {"dtype": "float16"},
        {"device": "tpu"},
        {"separator": ""},
        {"split": ""},
        {"tokens_per_batch": 0},
        {"max_length": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        RewardOptions(model="m", **wrong)
