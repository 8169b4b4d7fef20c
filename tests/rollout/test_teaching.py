"""What a finished group gets from its teachers: prompts of their own, and log-probs in the columns of its turns."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import teacher_fakes as fakes
import trio
import trio.testing
from rollout_fakes import CHATML, make_tokenizer

from agentrl.dispatch import TeacherPlace
from agentrl.engines.teacher_client import TeacherServers
from agentrl.errors import SamplerUnavailable
from agentrl.records import Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun
from agentrl.rollout.render import Renderer
from agentrl.rollout.teaching import Asked, Told, Tutor
from agentrl.rows import rows_of
from agentrl.teacher_prompt import TeacherPrompt

A, B = "http://a", "http://b"
ROW = TeacherPrompt(shows="row", template="{prompt} Hint: {privileged_context}")
SIBLINGS = TeacherPrompt(shows="siblings", template="{prompt}{solution}", solution=" Like {solution}")
RENDERER = Renderer(make_tokenizer(CHATML))
QUESTION = [{"role": "user", "content": "ask"}]


def span(given: list[int], sampled: list[int], source: Source = Source.PROMPT) -> TokenSpan:
    ids = [*given, *sampled]
    return TokenSpan(
        ids=np.array(ids),
        source=np.array([source] * len(given) + [Source.SAMPLED] * len(sampled)),
        logprobs=np.array([np.nan] * len(given) + [-1.0] * len(sampled)),
        versions=(VersionRun(version=Version(), start=len(given), end=len(ids)),),
    )


def make_rollout(
    member: int = 0, score: float | None = 0.0, row: dict[str, Any] | None = None, text: str = "hello", **changes: Any
) -> Rollout:
    """Two turns behind a prompt; the second answers three tokens of the environment."""
    turns = [(-1, span([5, 6, 7], [8, 9])), (0, span([10, 11, 12], [13], Source.ENVIRONMENT))]
    return Rollout(
        task=Task(id="t", environment="e", row=row or {}),
        member=member,
        turns=tuple(Turn(parent=parent, span=one, contract=SamplingContract(), finish_reason="stop") for parent, one in turns),
        messages=({"role": "user", "content": "ask"}, {"role": "assistant", "content": text}),
        ending="complete",
        score=Score.unscorable("lost") if score is None else Score(value=score),
        **changes,
    )


def teach(
    rollouts: list[Rollout], *servers: tuple[fakes.FakeTeacher, dict[str, Any]], prompt: Any = QUESTION, how: Any = None, **options: Any
) -> list[Rollout]:
    """What a tutor makes of them, on a clock that jumps."""

    async def main() -> list[Rollout]:
        asked = [_asked(server, top_k=options.get("top_k", 0), **place) for server, place in servers]
        tutor = Tutor(renderer=RENDERER, prompt=how, teachers=tuple(asked), **options)
        told = {one.member: Told(prompt=prompt) for one in rollouts} if prompt is not None else {}
        return await tutor.taught(rollouts, told)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def _asked(server: fakes.FakeTeacher, *, top_k: int, name: str = "teacher", weight: float = 1.0) -> Asked:
    place = TeacherPlace(name=name, servers=(server.url,), weight=weight, timeout_s=9.0, api_key_env="NONE")
    servers = TeacherServers([server.url], timeout_s=9.0, top_k=top_k, connect=lambda url, headers: server)
    return Asked(place=place, servers=servers)


def test_the_teacher_reads_the_rows_context_in_the_users_message_and_the_sampled_tokens_as_they_were() -> None:
    (got,) = teach([make_rollout(row={"privileged_context": "4"})], how=ROW)
    assert got.teacher_prompt is not None
    np.testing.assert_array_equal(got.teacher_prompt, RENDERER.prompt([{"role": "user", "content": "ask Hint: 4"}]).ids)
    assert got.counters["teacher/taught"] == 1
    assert [one.span.ids.tolist() for one in got.turns] == [[5, 6, 7, 8, 9], [10, 11, 12, 13]]


def test_a_plain_prompt_stays_plain() -> None:
    (got,) = teach([make_rollout(row={"privileged_context": "4"})], prompt="ask", how=ROW)
    np.testing.assert_array_equal(got.teacher_prompt, RENDERER.prompt("ask Hint: 4").ids)


def test_a_row_without_context_is_unscorable_and_says_which_field() -> None:
    (got,) = teach([make_rollout()], how=ROW)
    assert got.score.value is None
    assert "`privileged_context` is 'None'" in got.score.reason
    assert got.teacher_prompt is None


def test_an_environment_that_plays_itself_has_no_prompt_to_show_more_with() -> None:
    (got,) = teach([make_rollout(row={"privileged_context": "4"})], prompt=None, how=ROW)
    assert "plays the episode itself" in got.score.reason


def test_failed_rollouts_are_taught_with_a_sibling_that_succeeded() -> None:
    failed, won = teach([make_rollout(0), make_rollout(1, 1.0, text="yes")], how=SIBLINGS)
    np.testing.assert_array_equal(failed.teacher_prompt, RENDERER.prompt([{"role": "user", "content": "ask Like yes"}]).ids)
    assert won.teacher_prompt is None
    assert (failed.counters["teacher/taught"], won.counters["teacher/taught"]) == (1, 0)
    assert won.score.value == 1


def test_a_prompt_longer_than_it_may_be_is_not_cut_but_left_out_and_counted() -> None:
    for limit in ({"prompt_max": 5}, {"context_length": 20}):
        how = dataclasses.replace(ROW, max_tokens=limit.get("prompt_max"))
        options = {"context_length": limit["context_length"]} if "context_length" in limit else {}
        (got,) = teach([make_rollout(row={"privileged_context": "4"})], how=how, **options)
        assert got.teacher_prompt is None
        assert got.counters["teacher/too_long"] == 1
        assert got.score.value == 0


def test_servers_fill_the_columns_of_sampled_tokens_alone() -> None:
    server = fakes.FakeTeacher(A)
    (got,) = teach([make_rollout()], (server, {}))
    (top,) = teach([make_rollout()], (server, {}), top_k=2)
    ids = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    table = fakes.table(ids)
    first, second = (turn.span.columns for turn in got.turns)
    np.testing.assert_allclose(first["teacher"], [np.nan, np.nan, np.nan, table[3, 8], table[4, 9]], rtol=1e-6)
    np.testing.assert_allclose(second["teacher"], [np.nan, np.nan, np.nan, table[8, 13]], rtol=1e-6)
    first, second = (turn.span.columns for turn in top.turns)
    assert first["teacher_ids:teacher"][:3].tolist() == [[-1, -1]] * 3
    assert "teacher" not in first
    np.testing.assert_array_equal(second["teacher_ids:teacher"][3], np.argsort(-table[8])[:2])
    np.testing.assert_allclose(second["teacher_top:teacher"][3], -np.sort(-table[8])[:2], rtol=1e-6)
    (row,) = rows_of(got)
    np.testing.assert_allclose(row.columns["teacher"][row.trained], table[[3, 4, 8], [8, 9, 13]], rtol=1e-6)
    assert len(server.asked) == 2


def test_a_teacher_with_a_prompt_of_its_own_scores_behind_it() -> None:
    server = fakes.FakeTeacher(A, context_length=99)
    (got,) = teach([make_rollout(row={"privileged_context": "4"})], (server, {}), how=ROW)
    (asked,) = server.asked
    assert asked["prompt"] == [*got.teacher_prompt.tolist(), 8, 9, 10, 11, 12, 13]
    table = fakes.table(asked["prompt"])
    np.testing.assert_allclose(got.turns[0].span.columns["teacher"][3:], table[[-6, -5], [8, 9]], rtol=1e-6)


def test_several_teachers_are_averaged_by_weight_and_a_row_may_name_one() -> None:
    one, other = fakes.FakeTeacher(A), fakes.FakeTeacher(B, fault=lambda call: fakes.reply(_flat([5, 6, 7, 8, 9, 10, 11, 12, 13])))
    servers = ((one, {"name": "one", "weight": 3.0}), (other, {"name": "other", "weight": 1.0}))
    mixed, alone = teach([make_rollout(0), make_rollout(1, row={"teacher": "other"})], *servers, routed=True)
    table = fakes.table([5, 6, 7, 8, 9, 10, 11, 12, 13])
    np.testing.assert_allclose(mixed.turns[1].span.columns["teacher"][3], 0.75 * table[8, 13] + 0.25 * -2.0, rtol=1e-6)
    assert alone.turns[1].span.columns["teacher"][3] == -2.0


def test_a_rollout_that_the_teacher_cannot_hold_is_unscorable_and_the_group_goes_on() -> None:
    server = fakes.FakeTeacher(A, context_length=9)
    (got,) = teach([make_rollout()], (server, {}))
    assert "9 tokens does not fit the teacher" in got.score.reason
    assert not got.turns[0].span.columns


def test_unscorable_rollouts_are_not_sent() -> None:
    server = fakes.FakeTeacher(A)
    (got,) = teach([make_rollout(score=None)], (server, {}))
    assert not server.asked
    assert got.score.reason == "lost"


def test_a_teacher_that_is_down_ends_the_group_with_the_servers_error() -> None:
    server = fakes.FakeTeacher(A, fault=lambda call: fakes.lost(A))
    with pytest.raises(SamplerUnavailable, match="no server of the teacher scored"):
        teach([make_rollout()], (server, {}))


def _flat(ids: list[int]) -> dict[str, Any]:
    rows = [None, *({str(token): {"logprob": -2.0}} for token in ids[1:])]
    return {"choices": [{"prompt_logprobs": rows}]}
