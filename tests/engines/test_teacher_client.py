"""A teacher on servers: what it is asked, that answers are checked, and what becomes of servers that fail."""

from __future__ import annotations

import numpy as np
import pytest
import teacher_fakes as fakes
from teacher_fakes import FakeTeacher

from agentrl.errors import ConfigError, RequestRefused, SamplerUnavailable

A, B = "http://a", "http://b"
IDS = np.arange(10, 20, dtype=np.int32)


def test_scores_are_those_of_the_tokens_from_a_place_on() -> None:
    server = FakeTeacher(A)
    found, _ = fakes.play(lambda teacher: teacher.score(IDS, 4), server, api_key="k")
    table = fakes.table(IDS.tolist())
    np.testing.assert_allclose(found.logprobs, table[np.arange(4, 10), IDS[4:]], rtol=1e-6)
    assert found.top_ids.shape == found.top_logprobs.shape == (6, 0)
    (asked,) = server.asked
    assert asked["prompt"] == IDS.tolist()
    assert asked["prompt_logprobs"] == 0
    assert asked["max_tokens"] == 1
    assert asked["add_special_tokens"] is False
    assert server.headers == {"authorization": "Bearer k"}
    assert server.closed


def test_the_likeliest_tokens_come_in_order_of_their_chances_with_the_token_only_where_it_is_one_of_them() -> None:
    found, _ = fakes.play(lambda teacher: teacher.score(IDS, 1), FakeTeacher(A), top_k=3)
    table = fakes.table(IDS.tolist())[1:]
    np.testing.assert_array_equal(found.top_ids, np.argsort(-table, axis=1)[:, :3])
    np.testing.assert_allclose(found.top_logprobs, -np.sort(-table, axis=1)[:, :3], rtol=1e-6)
    assert (np.diff(found.top_logprobs, axis=1) <= 0).all()


def test_texts_are_scored_side_by_side_on_all_servers_and_come_back_in_their_order() -> None:
    one, other = FakeTeacher(A), FakeTeacher(B)
    texts = [(np.arange(3, 7 + number, dtype=np.int32), 1) for number in range(12)]
    found, seconds = fakes.play(lambda teacher: teacher.score_all(texts), one, other, most_in_flight=3)
    assert [len(scores.logprobs) for scores in found] == [3 + number for number in range(12)]
    assert len(one.asked) == len(other.asked) == 6
    assert one.most_running == other.most_running == 3
    assert seconds == 2


@pytest.mark.parametrize("fault", [fakes.lost(A), fakes.reply(b"no", 503), fakes.reply(b"{}"), fakes.reply({"choices": []})])
def test_a_failed_call_is_made_again_on_another_server(fault: object) -> None:
    bad, good = FakeTeacher(A, fault=lambda call: fault), FakeTeacher(B)  # type: ignore[arg-type,return-value]
    found, _ = fakes.play(lambda teacher: teacher.score(IDS, 1), bad, good)
    assert len(found.logprobs) == 9
    assert len(bad.asked) == len(good.asked) == 1


def test_where_no_server_answers_the_error_names_them_and_what_they_did() -> None:
    server = FakeTeacher(A, fault=lambda call: fakes.lost(A))
    fakes.fails(
        SamplerUnavailable, r"10 tokens within 30 s \(servers: http://a\); \d+ calls failed: the connection", *_score(server), timeout_s=30
    )
    assert len(server.asked) > 3, "it tries again as long as there is time"


def test_a_server_that_is_too_slow_ends_the_wait_at_the_deadline() -> None:
    fakes.fails(SamplerUnavailable, r"within 5 s .*no call failed.*teacher\.timeout_s", *_score(FakeTeacher(A, turn_s=99)), timeout_s=5)


def test_a_text_that_the_teacher_cannot_hold_is_refused_before_it_is_sent() -> None:
    server = FakeTeacher(A, context_length=10)
    fakes.fails(RequestRefused, "10 tokens does not fit the teacher at http://a, which takes 9", *_score(server))
    assert not server.asked


def test_a_refusal_ends_the_text_and_not_only_the_call() -> None:
    server = FakeTeacher(A, fault=lambda call: fakes.reply({"error": {"message": "too long"}}, 400))
    fakes.fails(RequestRefused, "refused a text of 10 tokens: too long", *_score(server))
    assert len(server.asked) == 1


def test_the_first_token_is_predicted_by_nothing() -> None:
    fakes.fails(RequestRefused, "nothing predicts the first token", lambda teacher: teacher.score(IDS, 0), FakeTeacher(A))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.__setitem__(3, {"7": {"logprob": -1.0}}), "token 13 at place 2 has no log-prob"),
        (lambda rows: rows.__setitem__(3, None), "token 13 at place 2 has no log-prob"),
        (lambda rows: rows[3]["13"].__setitem__("logprob", -9999.0), "log-prob of token 13 is -9999"),
        (lambda rows: rows[3]["13"].__setitem__("logprob", 0.5), "log-prob of token 13 is 0.5"),
        (lambda rows: rows.pop(), "9 positions came and the text has 10 tokens"),
        (lambda rows: rows.__setitem__(3, {"13": {"logprob": -1.0}}), "1 of the 2 likeliest tokens came"),
        (lambda rows: rows[3].__setitem__("999", {"logprob": -1e-9}), "the student's vocabulary has 300"),
    ],
)
def test_an_answer_that_lacks_a_number_is_never_made_up(change: object, said: str) -> None:
    broken = fakes.answer(IDS.tolist(), 2)
    change(broken["choices"][0]["prompt_logprobs"])  # type: ignore[operator]
    server = FakeTeacher(A, fault=lambda call: fakes.reply(broken))
    fakes.fails(SamplerUnavailable, said, *_score(server), timeout_s=3, top_k=2, vocab_size=fakes.VOCABULARY)


def test_a_token_without_a_chance_is_minus_infinity_among_the_likeliest() -> None:
    broken = fakes.answer(IDS.tolist(), 2)
    row = broken["choices"][0]["prompt_logprobs"][3]
    row.clear()
    row.update({"13": {"logprob": 0.0}, "7": {"logprob": -9999.0}})
    server = FakeTeacher(A, fault=lambda call: fakes.reply(broken))
    found, _ = fakes.play(lambda teacher: teacher.score(IDS, 1), server, top_k=2)
    assert found.top_logprobs[2].tolist() == [0.0, -np.inf]
    assert found.top_ids[2].tolist() == [13, 7]


def test_the_check_at_the_start_compares_tokenizers() -> None:
    ids = [ord(letter) % fakes.VOCABULARY for letter in "abc"]
    fakes.play(lambda teacher: teacher.check("abc", ids), FakeTeacher(A))
    fakes.fails(
        ConfigError, r"teacher\.servers: http://b serves 'teacher', whose tokenizer is another", lambda teacher: teacher.check("abc", ids),
        FakeTeacher(A), FakeTeacher(B, shift=1),
    )  # fmt: skip


def test_the_check_at_the_start_says_how_a_server_gives_more_log_probs() -> None:
    server = FakeTeacher(A, fault=lambda call: fakes.reply({"error": {"message": "Requested prompt logprobs of 90, max is 20"}}, 400))
    ids = [ord(letter) % fakes.VOCABULARY for letter in "abc"]
    fakes.fails(ConfigError, "--max-logprobs 90", lambda teacher: teacher.check("abc", ids), server, top_k=90)


def _score(server: FakeTeacher) -> tuple[object, FakeTeacher]:
    return (lambda teacher: teacher.score(IDS, 1)), server
