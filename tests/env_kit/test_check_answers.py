"""Solutions, answers without skill, and the same answer twice."""

import pytest
from kit_fakes import checked

from agentrl.env_kit.check_answers import check_determinism, check_golden, check_scores, check_trivial, play_golden


async def golden(kit):
    played = await play_golden(kit)
    await check_trivial(kit)
    return check_golden(kit, played)


async def trivial(kit):
    await play_golden(kit)
    return await check_trivial(kit)


async def scores(kit):
    await check_trivial(kit)
    return check_scores(kit)


@pytest.mark.parametrize("name", ["Good", "HalfGolden", "Talks"])
def test_solutions_that_score_as_such(name, tmp_path):
    found = checked(golden, name, tmp_path)
    assert found.status == "ok", found.got
    assert found.facts["solutions"] == 4


def test_no_solutions_are_said_to_be_missing(tmp_path):
    assert checked(golden, "NoGolden", tmp_path).status == "skipped"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WrongGolden", "the solution got 0, complete"),
        ("GoldenTooLong", "the solution got 0, truncated"),
        ("GoldenIsText", "row 0: golden: it returned '1000'; allowed: a list of at least one assistant turn, or None"),
        ("NeedsGold", "row 2: environment"),
        ("ScoresNan", "the solution got unscorable"),
    ],
)
def test_solutions_that_do_not_score_as_such_fail(name, said, tmp_path):
    found = checked(golden, name, tmp_path)
    assert found.status == "failed"
    assert said in found.got


@pytest.mark.parametrize("name", ["Good", "NoGolden", "HalfGolden", "Talks", "ToolsRaise"])
def test_answers_without_skill_do_not_pay(name, tmp_path):
    found = checked(trivial, name, tmp_path)
    assert found.status == "ok", found.got


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ReplyWantsNumbers", "reply: ValueError: invalid literal for int()"),
        ("AnythingGoes", "'nothing' scores as a right answer in 4 of 4 tasks"),
        ("SaysItInThePrompt", "'the prompt' scores as a right answer in 4 of 4 tasks"),
        ("ToolLeaks", "'what a tool said' scores as a right answer in 4 of 4 tasks"),
        ("TakesNan", "'nan' scores as a right answer in 4 of 4 tasks"),
        ("ReadsReasoning", "'a solution inside reasoning' scores as a right answer in 4 of 4 tasks"),
    ],
)
def test_answers_without_skill_that_pay_fail(name, said, tmp_path):
    found = checked(trivial, name, tmp_path)
    assert found.status == "failed"
    assert said in found.got


def test_winning_against_oneself_says_nothing(tmp_path):
    found = checked(trivial, "PlaysItself", tmp_path, policies=("old",))
    assert (found.status, "against itself" in found.got) == ("ok", True)


@pytest.mark.parametrize("name", ["Good", "Talks"])
def test_the_same_turns_score_the_same_twice(name, tmp_path):
    assert checked(check_determinism, name, tmp_path).status == "ok"


@pytest.mark.parametrize("name", ["ScoresByProcess", "RewardsByProcess"])
def test_scores_that_depend_on_the_process_fail(name, tmp_path):
    found = checked(check_determinism, name, tmp_path, processes=2, num_tasks=1)
    assert found.status == "failed"
    assert "in one process and" in found.got


def test_a_conversation_that_differs_is_a_warning(tmp_path):
    found = checked(check_determinism, "TellsTheTime", tmp_path)
    assert found.status == "warning"
    assert "the conversation differs between two processes, at message 2" in found.got


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ScoresNan", "score returned nan"),
        ("ScoresNothing", "score returned None"),
        ("ScoresText", "score returned '1.0' (of type str)"),
        ("ScoresInfinity", "score returned inf"),
    ],
)
def test_scores_that_are_none_fail(name, said, tmp_path):
    found = checked(scores, name, tmp_path)
    assert found.status == "failed"
    assert said in found.got


def test_a_score_is_seldom_missing_without_a_failure(tmp_path):
    found = checked(scores, "SeldomUnscorable", tmp_path)
    assert found.status == "warning"
    assert found.facts["unscorable"] == 4
    assert checked(scores, "Good", tmp_path / "more").status == "ok"
