"""The client against a real vLLM server: ids, log-probs and ends as transformers and as vLLM's other route give them."""

from __future__ import annotations

import json
import urllib.request
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import trio

from agentrl.dispatch import Served, Serving
from agentrl.engines.protocol import Request
from agentrl.engines.vllm import VllmEngine
from agentrl.engines.vllm_control import Control, http_client
from agentrl.engines.vllm_pace import read_load
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.errors import RequestRefused
from agentrl.records import SamplingContract, Version

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TEMPERATURES = [0.6, 1.0, 1.3]
VERSION = Version(lineage=0, step=3)
END = 1


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url + path, data=json.dumps(body).encode(), headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def get(url: str, path: str) -> str:
    with urllib.request.urlopen(url + path, timeout=60) as answer:
        return answer.read().decode()


def counter(url: str, name: str) -> float:
    lines = [line for line in get(url, "/metrics").splitlines() if line.startswith(f"vllm:{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="module")
def url(vllm_server, model):
    """Of a server with the folder's weights, whatever other tests published to it."""
    http = http_client()
    publisher = VllmPublisher(FilesystemTransport(), lambda url: Control(url, http))
    publisher.publish(model.named_parameters(), VERSION, [vllm_server.url])
    publisher.close()
    return vllm_server.url


@pytest.fixture(scope="module")
def model(vllm_server):
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(vllm_server.model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def context_length(url):
    return json.loads(get(url, "/v1/models"))["data"][0]["max_model_len"]


def scored(model, prompt, completion, temperature):
    """The log-probs that one forward pass of transformers gives what was sampled."""
    ids = torch.from_numpy(np.concatenate([prompt, completion.ids]).astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    picked = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1).gather(1, ids[len(prompt) :, None])
    return picked.squeeze(1).numpy()


def make_request(prompt, *, temperature=1.0, seed=0, max_tokens=24, stop_ids=(END,), session=""):
    contract = SamplingContract(temperature=temperature, engine="vllm")
    return Request(
        ids=np.asarray(prompt, dtype=np.int32), max_tokens=max_tokens, contract=contract, seed=seed, stop_ids=stop_ids, session=session
    )


def with_engine(url, context_length, body):
    """Run `body(engine)`; nothing may be held against the server."""
    suspects: list[str] = []

    async def main():
        async with VllmEngine.open(timeout_s=120, on_suspect=lambda _, why: suspects.append(why)) as engine:
            engine.update(Serving(servers=(Served(url=url, model="policy", version=VERSION),), context_length=context_length))
            return await body(engine)

    result = trio.run(main)
    assert not suspects
    return result


async def sample_all(engine, requests):
    completions = [None] * len(requests)

    async def sample(at):
        completions[at] = await engine.generate(requests[at])

    async with trio.open_nursery() as nursery:
        for at in range(len(requests)):
            nursery.start_soon(sample, at)
    return completions


PROMPTS = [list(range(10 + start, 26 + start)) for start in range(6)]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_log_probs_are_the_learners_and_versions_the_servers(url, model, context_length, temperature):
    requests = [make_request(prompt, temperature=temperature, seed=seed) for prompt in PROMPTS for seed in (5, 2**62 + 5)]
    for request, completion in zip(requests, with_engine(url, context_length, partial(sample_all, requests=requests)), strict=True):
        assert np.abs(completion.logprobs - scored(model, request.ids, completion, temperature)).max() < 1e-4
        assert [(run.version, run.start, run.end) for run in completion.versions] == [(VERSION, 0, len(completion.ids))]
        assert (completion.finish_reason == "stop") == (completion.ids[-1] == END)


def test_greedy_samples_the_likeliest_token_and_what_the_other_route_does(url, model, context_length):
    requests = [make_request(prompt, temperature=0.0) for prompt in PROMPTS]
    for request, completion in zip(requests, with_engine(url, context_length, partial(sample_all, requests=requests)), strict=True):
        body = {"model": "policy", "prompt": request.ids.tolist(), "max_tokens": 24, "temperature": 0, "logprobs": 0}
        other = post(url, "/v1/completions", {**body, "return_token_ids": True})["choices"][0]
        assert completion.ids.tolist() == other["token_ids"]
        assert completion.logprobs == pytest.approx(other["logprobs"]["token_logprobs"], abs=1e-4)
        with torch.no_grad():
            ids = torch.from_numpy(np.concatenate([request.ids, completion.ids]).astype(np.int64))
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
        assert logits[len(request.ids) - 1 : -1].argmax(-1).tolist() == completion.ids.tolist()


def test_a_seed_names_the_draws_and_the_other_route_draws_the_same(url, context_length):
    requests = [make_request(PROMPTS[0], seed=seed) for seed in (1, 1, 2, 2**63 - 1)]
    first, again, other, last = with_engine(url, context_length, partial(sample_all, requests=requests))
    assert first.ids.tolist() == again.ids.tolist()
    assert len({tuple(completion.ids.tolist()) for completion in (first, other, last)}) == 3
    body = {"model": "policy", "prompt": PROMPTS[0], "max_tokens": 24, "temperature": 1, "seed": 1, "logprobs": 0, "return_token_ids": True}
    assert post(url, "/v1/completions", body)["choices"][0]["token_ids"] == first.ids.tolist()


def test_only_the_stop_ids_end_a_completion_and_the_stop_token_is_part_of_it(url, context_length):
    prompt = list(range(10, 42))  # the model soon ends its answer to this one by itself
    greedy = with_engine(url, context_length, lambda engine: engine.generate(make_request(prompt, temperature=0.0)))
    assert greedy.ids[-1] == END
    end = greedy.ids.tolist()[2]
    requests = [
        make_request(prompt, temperature=0.0, stop_ids=(end,)),
        make_request(prompt, temperature=0.0, stop_ids=(), max_tokens=60),
    ]
    stopped, endless = with_engine(url, context_length, partial(sample_all, requests=requests))
    assert stopped.ids.tolist() == greedy.ids.tolist()[: greedy.ids.tolist().index(end) + 1]
    assert stopped.finish_reason == "stop"
    assert (len(endless.ids), endless.finish_reason) == (60, "length")
    assert END in endless.ids[:-1]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_further_turns_hit_the_prefix_cache_and_score_the_same(url, model, context_length, temperature):
    async def episode(engine):
        prompt = 5 + (np.arange(270, dtype=np.int32) * 7 + round(temperature * 10)) % 300  # two blocks of 128, vLLM's size on a CPU
        turns = []
        for turn in range(3):
            request = make_request(prompt, temperature=temperature, seed=turn, session="episode", stop_ids=())
            completion = await engine.generate(request)
            turns.append((request, completion))
            prompt = np.concatenate([prompt, completion.ids, np.arange(5, 13, dtype=np.int32)])
        return turns

    hits = counter(url, "prefix_cache_hits_total")
    turns = with_engine(url, context_length, episode)
    for request, completion in turns:
        assert np.abs(completion.logprobs - scored(model, request.ids, completion, temperature)).max() < 1e-4
    assert counter(url, "prefix_cache_hits_total") > hits


def test_the_context_is_filled_to_its_last_token_and_never_beyond(url, context_length):
    prompt = [5 + at % 200 for at in range(context_length)]
    requests = [make_request(prompt[: context_length - room], max_tokens=50, stop_ids=()) for room in (0, 1, 3)]
    completions = with_engine(url, context_length, partial(sample_all, requests=requests))
    assert [len(completion.ids) for completion in completions] == [0, 1, 3]
    assert {completion.finish_reason for completion in completions} == {"length"}


def test_a_token_outside_the_vocabulary_is_refused_in_the_servers_words(url, context_length):
    async def refused(engine):
        with pytest.raises(RequestRefused, match="out of vocabulary"):
            await engine.generate(make_request([10**6]))

    with_engine(url, context_length, refused)


def test_cancelling_a_call_makes_the_server_abort_it(url, context_length):
    async def abort(engine):
        long = make_request(PROMPTS[0], max_tokens=context_length - 20, stop_ids=())

        async def ask():
            while True:  # one that ends before it is seen running is asked again
                await engine.generate(long)
                steps.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
            with trio.fail_after(60):
                while await running() < 4:
                    pass
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            while await running():
                await engine.generate(make_request(PROMPTS[1], max_tokens=1))  # figures are renewed with each step
                steps.append(1)

    async def running():
        return (await trio.to_thread.run_sync(lambda: read_load(get(url, "/metrics")))).running

    steps = []
    ended = counter(url, "request_success_total")
    with_engine(url, context_length, abort)
    assert counter(url, "request_success_total") - ended <= len(steps)


def test_calls_to_a_paused_server_take_longer_and_nothing_else(url, context_length):
    async def through_a_pause(engine):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause)
            return await sample_all(engine, [make_request(PROMPTS[0], seed=seed, max_tokens=200, stop_ids=()) for seed in range(4)])

    async def pause():
        await trio.to_thread.run_sync(post, url, "/pause?mode=keep&clear_cache=false", {})
        await trio.sleep(1)
        await trio.to_thread.run_sync(post, url, "/resume", {})

    completions = with_engine(url, context_length, through_a_pause)
    assert [len(completion.ids) for completion in completions] == [200] * 4
