"""Samples of the reference from vLLM servers: the model beneath the adapters, under its own name."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio
from vllm_fakes import STOP, A, B, FakeServer, as_reply, ask_all, give_up, make_answer, make_request, play, sampled_of, serving
from vllm_server_fake import SETTINGS, servers

from agentrl.engines.vllm_api import BadAnswer, Call, check_sendable, generate_body, parse_answer, reference_model
from agentrl.engines.vllm_preflight import Expectations, check_server
from agentrl.errors import ConfigError, RequestRefused
from agentrl.records import Version, VersionRun

FIRST, NINTH = Version(), Version(step=9)


def call_for(share=1.0, *, model="policy", version=NINTH, beneath=True):
    request = make_request(reference_share=share)
    return Call(request=request, id="r", url=A, model=model, max_tokens=8, version=version, beneath=beneath)


@pytest.mark.parametrize("share", [0.3, -0.1, 2.0, float("nan"), float("inf")])
def test_a_mixture_is_not_sent(share):
    with pytest.raises(RequestRefused, match="never from a mixture: reference_share must be 0 or 1"):
        check_sendable(make_request(reference_share=share))
    server = FakeServer(A)
    assert isinstance(give_up(lambda engine: engine.generate(make_request(reference_share=share)), server), RequestRefused)
    assert not server.asked


@pytest.mark.parametrize(("model", "version"), [("policy", FIRST), ("policy@0.0", FIRST), ("policy@1.20", Version(lineage=1, step=20))])
def test_the_reference_has_the_name_of_the_model_beneath(model, version):
    assert reference_model(model, version) == "policy"


@pytest.mark.parametrize("version", [Version(step=1), Version(lineage=1)])
def test_a_model_whose_weights_were_replaced_is_no_reference(version):
    with pytest.raises(RequestRefused, match=r"learner\.lora.*engine\.kind=embedded"):
        reference_model("policy", version)


def test_its_prefix_cache_outlasts_versions_and_is_nobody_elses():
    salts = [json.loads(generate_body(call_for(version=Version(step=step))))["cache_salt"] for step in range(3)]
    assert len(set(salts)) == 1
    assert json.loads(generate_body(call_for(0.0, beneath=False)))["cache_salt"] == "0.9" not in salts


@pytest.mark.parametrize("named", ["default", "0.0", "0.12"])
def test_its_tokens_have_the_version_at_dispatch_whatever_the_server_calls_its_weights(named):
    answer = make_answer([5, STOP], versions=((named, 0, 2),))
    completion = parse_answer(json.dumps(answer).encode(), call_for())
    assert completion.versions == (VersionRun(version=NINTH, start=0, end=2),)


def test_weights_that_were_replaced_under_a_request_for_the_reference_do_not_count_as_it():
    call = call_for(version=FIRST, beneath=False)
    answer = make_answer([5, STOP], versions=(("0.0", 0, 2),))
    assert parse_answer(json.dumps(answer).encode(), call).versions == (VersionRun(version=FIRST, start=0, end=2),)
    answer = make_answer([5, STOP], versions=(("0.0", 0, 1), ("0.1", 1, 2)))
    with pytest.raises(BadAnswer, match=r"version 0\.1 sampled, and the model that training started from was asked"):
        parse_answer(json.dumps(answer).encode(), call)


def test_policy_and_reference_are_asked_side_by_side_over_an_adapters_versions():
    server = FakeServer(A, turn_s=10, version="default")

    async def over_a_publish(engine):
        answers = {}

        async def ask(name, seed, **contract):
            answers[name] = await engine.generate(make_request(seed, session=name, **contract))

        async with trio.open_nursery() as nursery:
            engine.update(serving(server, model="policy@0.3", step=3))
            nursery.start_soon(partial(ask, "early rival", 1, reference_share=1.0))
            nursery.start_soon(ask, "early", 2)
            await trio.sleep(1)
            engine.update(serving(server, model="policy@0.4", step=4))  # neither waits for it, and neither is cut off
            nursery.start_soon(partial(ask, "late rival", 3, reference_share=1.0))
            nursery.start_soon(ask, "late", 4)
        return answers

    answers, seconds, suspects = play(over_a_publish, server)
    assert (seconds, suspects, server.aborted) == (11.0, [], 0)
    models = {asked["sampling_params"]["seed"]: asked["model"] for asked in server.asked}
    assert models == {1: "policy", 2: "policy@0.3", 3: "policy", 4: "policy@0.4"}
    steps = {name: [run.version.step for run in completion.versions] for name, completion in answers.items()}
    assert steps == {"early rival": [3], "early": [3], "late rival": [4], "late": [4]}


def test_before_the_first_publish_the_policy_is_its_own_reference():
    server = FakeServer(A)
    completion, _, _ = play(lambda engine: engine.generate(make_request(7, reference_share=1.0)), server)
    assert completion.ids.tolist() == sampled_of(7)
    assert [(asked["model"], asked["cache_salt"]) for asked in server.asked] == [("policy", "0.0")]


def test_a_server_with_replaced_weights_is_not_asked_for_the_reference():
    server = FakeServer(A)

    async def after_a_publish(engine):
        engine.update(serving(server, step=1))
        await engine.generate(make_request(reference_share=1.0))

    error = give_up(after_a_publish, server)
    assert isinstance(error, RequestRefused)
    assert not server.asked


def test_a_request_for_the_reference_is_asked_again_elsewhere_like_any_other():
    servers = [FakeServer(A, fault=lambda _: as_reply({"error": {}}, 500)), FakeServer(B, version="default")]

    async def ask(engine):
        engine.update(serving(*servers, model="policy@0.2", step=2))
        return await ask_all(engine, [make_request(seed, reference_share=1.0) for seed in range(4)])

    answers, _, suspects = play(ask, *servers)
    assert {url for url, _ in suspects} == {A}
    assert all(completion.versions[0].version == Version(step=2) for completion in answers.values())
    assert {asked["model"] for server in servers for asked in server.asked} == {"policy"}


@pytest.mark.parametrize(("device", "reference"), [("cpu", False), ("cpu", True), ("cuda", True)])
def test_a_server_on_a_cpu_is_refused_where_the_reference_is_to_be_sampled(device, reference):
    settings = {**SETTINGS, "vllm_config": {**SETTINGS["vllm_config"], "device_config": {"device": device}}}
    server = servers(answers={"/server_info": settings}).control("http://127.0.0.1:1")
    expected = Expectations(owner="run-a", transport="lora", lora_rank=8, reference=reference)
    if device == "cuda" or not reference:
        assert check_server(server, expected).on_cpu == (device == "cpu")
        return
    with pytest.raises(ConfigError, match=r"computes on a CPU.*#48421.*engine\.kind=embedded"):
        check_server(server, expected)
