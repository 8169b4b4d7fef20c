"""Prompts, tools and limits."""

import pytest
from kit_fakes import checked

from agentrl.env_kit.check_start import check_start


def test_a_good_start_tells_what_the_model_gets(tmp_path):
    found = checked(check_start, "Good", tmp_path)
    assert found.status == "ok"
    assert "tools double; turns as the run file says" in found.got


def test_what_plays_itself_has_no_prompt(tmp_path):
    assert "plays its episodes itself" in checked(check_start, "Talks", tmp_path).got


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("RandomPrompt", "its prompt differs in a second process"),
        ("RandomTools", "its tools differ in a second process"),
        ("OddName", "tool 'not a name': a name has letters"),
        ("DeveloperRole", "a message of role 'developer'"),
        ("NothingToAnswer", "ends with a message of the assistant"),
        ("NeverStarts", "start: KeyError: 'board'"),
    ],
)
def test_wrong_starts_fail(name, said, tmp_path):
    found = checked(check_start, name, tmp_path)
    assert found.status == "failed"
    assert said in found.got


def test_a_row_that_does_not_start_is_named_and_left_out_of_the_rest(tmp_path):
    kits = []

    def check(kit):
        kits.append(kit)
        return check_start(kit)

    found = checked(check, "NeedsGold", tmp_path)
    assert found.status == "failed"
    assert found.got.startswith("row 2 (task ")
    assert [case.number for case in kits[0].cases] == [0, 1, 3]


def test_tools_that_a_model_cannot_understand_are_a_warning(tmp_path):
    found = checked(check_start, "BareTool", tmp_path)
    assert found.status == "warning"
    assert "tool 'bare' has no description" in found.got
    assert "parameter 'x' has no type" in found.got
