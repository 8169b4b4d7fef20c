"""What a model may do: calls that are wrong or odd, and play by chance."""

import pytest
from kit_fakes import checked

from agentrl.env_kit.check_play import check_calls, check_chance


@pytest.mark.parametrize("name", ["Good", "ToolsRaise"])
def test_wrong_calls_are_observations(name, tmp_path):
    found = checked(check_calls, name, tmp_path)
    assert found.status == "ok", found.got
    assert found.facts["calls"] > 20
    assert found.facts["longest_result"] < 10_000


@pytest.mark.parametrize("name", ["Talks", "NoGolden"])
def test_only_tools_that_are_offered_can_be_called(name, tmp_path):
    assert checked(check_calls, name, tmp_path).status == ("skipped" if name == "Talks" else "ok")


def test_a_tool_that_ends_the_episode_fails(tmp_path):
    found = checked(check_calls, "ToolEndsIt", tmp_path)
    assert found.status == "failed"
    assert "tool 'double': the episode ended: environment" in found.got
    assert "tool 'read': the episode ended: environment" in found.got


def test_a_tool_that_takes_its_process_down_fails(tmp_path):
    found = checked(check_calls, "ToolKills", tmp_path, processes=1)
    assert found.status == "failed"
    assert "its worker died: it ended with status 3" in found.got


@pytest.mark.parametrize("name", ["Good", "Talks", "ToolsRaise"])
def test_chance_breaks_nothing(name, tmp_path):
    found = checked(check_chance, name, tmp_path)
    assert (found.status, found.facts["episodes"]) == ("ok", 8)


def test_an_answer_that_breaks_an_episode_fails(tmp_path):
    found = checked(check_chance, "ReplyWantsNumbers", tmp_path)
    assert found.status == "failed"
    assert "reply: ValueError" in found.got
