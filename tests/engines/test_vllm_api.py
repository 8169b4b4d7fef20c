"""What is asked of vLLM, and that nothing is believed which was not asked for."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_fakes import STOP, VOCABULARY, make_answer, make_request

from agentrl.engines.vllm_api import (
    BadAnswer,
    Call,
    adapter_version,
    base_of,
    check_sendable,
    generate_body,
    parse_answer,
    parse_version,
    refusal,
    version_text,
)
from agentrl.errors import RequestRefused
from agentrl.records import Version, VersionRun

URL = "http://10.0.0.2:8000"


FIRST = Version()


def make_call(request=None, *, model="policy", max_tokens=8, version=FIRST):
    request = request or make_request()
    return Call(request=request, id="r", url=URL, model=model, max_tokens=max_tokens, version=version, vocab_size=VOCABULARY)


def parse(answer, **call):
    return parse_answer(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), make_call(**call))


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_version_reads_back_from_its_text(lineage, step):
    version = Version(lineage=lineage, step=step)
    assert parse_version(version_text(version)) == version


@pytest.mark.parametrize(
    "text", ["default", "", "7", "0.7.1", "0.-1", "00.7", "0.07", " 0.7", "0.7\n", "a.b", "0,7", "\u0660.7", "0." + "9" * 30]
)
def test_any_other_text_is_no_version(text):
    with pytest.raises(ValueError, match="not a weight version"):
        parse_version(text)


def test_an_adapters_name_says_its_version_and_base():
    assert adapter_version("policy@1.20") == Version(lineage=1, step=20)
    assert adapter_version("policy") is None
    assert (base_of("policy@1.20"), base_of("policy")) == ("policy", "policy")


def test_the_body_says_all_that_shapes_the_distribution_and_the_end():
    request = make_request(2**62, temperature=0.6, top_p=0.9, top_k=5, min_p=0.1)
    body = json.loads(generate_body(make_call(request, max_tokens=3, version=Version(lineage=1, step=7))))
    assert body == {
        "request_id": "r",
        "model": "policy",
        "token_ids": [10, 11, 12, 13],
        "cache_salt": "1.7",
        "sampling_params": {
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "max_tokens": 3,
            "seed": 2**62,
            "stop_token_ids": [STOP],
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
        },
    }


@pytest.mark.parametrize("temperature", [-1.0, 0.001, math.nan, math.inf])
def test_a_temperature_that_vllm_would_change_is_not_sent(temperature):
    with pytest.raises(RequestRefused, match="temperature"):
        check_sendable(make_request(temperature=temperature))
    check_sendable(make_request(temperature=0.0))


def test_a_prompt_of_nothing_or_a_budget_of_nothing_is_not_sent():
    with pytest.raises(RequestRefused, match="at least one token"):
        check_sendable(make_request(prompt=0))
    with pytest.raises(RequestRefused, match="max_tokens"):
        check_sendable(make_request(max_tokens=0))


def test_a_completion_is_what_the_server_said():
    answer = make_answer([5, 6, STOP], versions=(("0.2", 0, 1), ("0.3", 1, 3)))
    answer["choices"][0]["logprobs"]["content"][2]["logprob"] = -1.25
    completion = parse(answer, version=Version(step=2))
    assert (completion.ids.dtype, completion.ids.tolist()) == (np.int32, [5, 6, STOP])
    assert (completion.logprobs.dtype, completion.logprobs.tolist()) == (np.float32, [-0.5, -0.5, -1.25])
    assert completion.versions == (VersionRun(version=Version(step=2), start=0, end=1), VersionRun(version=Version(step=3), start=1, end=3))
    assert completion.finish_reason == "stop"
    assert parse(make_answer([5] * 8)).finish_reason == "length"


def test_an_adapters_completion_has_the_adapters_version_whatever_the_base_weights_are_called():
    completion = parse(make_answer([5, STOP], versions=(("default", 0, 2),)), model="policy@0.9", version=Version(step=9))
    assert completion.versions == (VersionRun(version=Version(step=9), start=0, end=2),)


def test_a_logprob_above_zero_by_rounding_is_zero():
    answer = make_answer([5])
    answer["choices"][0]["logprobs"]["content"][0]["logprob"] = 1e-7
    assert parse(answer).logprobs.tolist() == [0.0]


def broken(change):
    """An answer of three tokens with one thing wrong."""
    answer = make_answer([5, 6, STOP])
    change(answer["choices"][0], answer)
    return answer


def set_logprob(value):
    return lambda choice, _: choice["logprobs"]["content"][1].update(logprob=value)


def set_spans(*spans):
    named = [{"version": version, "start": start, "end": end} for version, start, end in spans]
    return lambda choice, _: choice.update(weight_versions=named)


BROKEN = {
    "no choices": (lambda _, answer: answer.update(choices=[]), "0 completions"),
    "another request's": (lambda _, answer: answer.update(request_id="generate-tokens-q"), "answers the request 'generate-tokens-q'"),
    "no request's": (lambda _, answer: answer.pop("request_id"), "request_id"),
    "two choices": (lambda choice, answer: answer.update(choices=[choice, choice]), "2 completions"),
    "null choices": (lambda _, answer: answer.update(choices=None), "array"),
    "null ids": (lambda choice, _: choice.update(token_ids=None), "array"),
    "an id as text": (lambda choice, _: choice.update(token_ids=[5, "6", 1]), "int"),
    "a fractional id": (lambda choice, _: choice.update(token_ids=[5, 6.5, 1]), "int"),
    "a truth for an id": (lambda choice, _: choice.update(token_ids=[5, True, 1]), "int"),
    "no tokens": (lambda choice, _: choice.update(token_ids=[], logprobs={"content": []}), "0 tokens"),
    "null logprobs": (lambda choice, _: choice.update(logprobs=None), "object"),
    "null content": (lambda choice, _: choice["logprobs"].update(content=None), "array"),
    "a null logprob": (set_logprob(None), "float"),
    "a logprob as text": (set_logprob("-0.5"), "float"),
    "a NaN logprob": (set_logprob(math.nan), "invalid"),
    "an infinite logprob": (set_logprob(-math.inf), "invalid"),
    "vLLM's stand-in for NaN": (set_logprob(-9999.0), "stands for NaN"),
    "a positive logprob": (set_logprob(0.1), "log-prob of token 1 is 0.1"),
    "fewer logprobs": (lambda choice, _: choice["logprobs"]["content"].pop(), "3 tokens came with 2"),
    "other tokens' logprobs": (lambda choice, _: choice["logprobs"]["content"][0].update(token_id=9), "other tokens"),
    "an unknown reason": (lambda choice, _: choice.update(finish_reason="repetition"), "repetition"),
    "a null reason": (lambda choice, _: choice.update(finish_reason=None), "str"),
    "aborted": (lambda choice, _: choice.update(finish_reason="abort"), "aborted"),
    "full, with a stop token": (lambda choice, _: choice.update(finish_reason="length"), "'length'"),
    "no versions": (lambda choice, _: choice.update(weight_versions=None), "no weight versions"),
    "an empty list of versions": (set_spans(), "no weight versions"),
    "a version that is not ours": (set_spans(("default", 0, 3)), "'default'"),
    "a hole": (set_spans(("0.0", 0, 1), ("0.1", 2, 3)), "after 1 of 3"),
    "an overlap": (set_spans(("0.0", 0, 2), ("0.1", 1, 3)), "after 2 of 3"),
    "an empty span": (set_spans(("0.0", 0, 0), ("0.1", 0, 3)), "0 to 0"),
    "a late start": (set_spans(("0.0", 1, 3)), "after 0 of 3"),
    "an early end": (set_spans(("0.0", 0, 2)), "cover 2 of 3"),
    "a late end": (set_spans(("0.0", 0, 4)), "cover 4 of 3"),
    "back to older weights": (set_spans(("0.1", 0, 1), ("0.0", 1, 3)), "had 0.1 already"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_answer_is_refused_and_says_whose_it_is(case):
    change, said = BROKEN[case]
    with pytest.raises(BadAnswer, match=said) as raised:
        parse(broken(change))
    assert URL in str(raised.value)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"<html>busy</html>", b"\xff\xfe", b'{"choices": [', b'{"choices": {}}'])
def test_what_is_no_answer_at_all_is_refused(body):
    with pytest.raises(BadAnswer, match=URL):
        parse(body)


def test_tokens_outside_the_vocabulary_or_beyond_the_budget_are_refused():
    with pytest.raises(BadAnswer, match="vocabulary has 1000"):
        parse(make_answer([5, VOCABULARY]))
    with pytest.raises(BadAnswer, match="9 tokens came and 1 to 8"):
        parse(make_answer([5] * 9))
    with pytest.raises(BadAnswer, match=str(2**70)[:5]):
        parse(make_answer([2**70]))


def test_tokens_after_a_stop_token_and_a_stop_without_one_are_refused():
    with pytest.raises(BadAnswer, match="go on after the stop token at 1"):
        parse(make_answer([5, STOP, 6]))
    answer = make_answer([5, 6])
    answer["choices"][0]["finish_reason"] = "stop"
    with pytest.raises(BadAnswer, match="last token 6"):
        parse(answer)


def test_weights_older_than_the_server_is_known_to_have_are_refused():
    with pytest.raises(BadAnswer, match=r"version 0\.4.* had 0\.5"):
        parse(make_answer([5], versions=(("0.4", 0, 1),)), version=Version(step=5))
    assert parse(make_answer([5], versions=(("1.0", 0, 1),)), version=Version(step=5)).versions[0].version == Version(lineage=1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(JSON, st.sampled_from(["token_ids", "logprobs", "finish_reason", "weight_versions"]))
def test_no_field_makes_it_fail_otherwise(value, name):
    answer = broken(lambda choice, _: choice.update({name: value}))
    try:
        completion = parse(answer)
    except BadAnswer:
        return
    assert completion.ids.tolist() == [5, 6, STOP]


def test_a_refusal_is_the_servers_own_words():
    assert refusal(b'{"error": {"message": "too long", "code": 400}}') == "too long"
    for body in (b"", b"nope", b"[1]", b'{"error": "x"}', b'{"detail": "x"}', b"\xff"):
        assert isinstance(refusal(body), str)
