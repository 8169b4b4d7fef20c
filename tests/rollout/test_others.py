"""Frozen policies as a rollout process reaches them, on servers of somebody else's."""

from __future__ import annotations

import pytest
import trio
from http_serving import serving
from rollout_fakes import FakeEngine, in_turn, make_task, make_tokenizer, thread_pool
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from talk_plays import HI, SPEC, TALK
from vllm_fakes import make_answer

from agentrl.config import RolloutConfig, RunConfig
from agentrl.config_engine import EngineConfig, SamplingConfig
from agentrl.dispatch import PolicyPlace, Setup
from agentrl.errors import SamplerUnavailable
from agentrl.records import SamplingContract
from agentrl.rollout.episode import play_episode
from agentrl.rollout.others import others_of
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler

TOKENIZER = make_tokenizer()
CONFIG = RunConfig(model="m", env="e", engine=EngineConfig(timeout_s=10))


def app(asked, *, models=None):
    ids = [*TOKENIZER.encode("theirs", add_special_tokens=False), TOKENIZER.convert_tokens_to_ids("<|end|>")]

    async def generate(request):
        body = await request.json()
        asked.append((request.headers.get("authorization"), body))
        answer = make_answer(ids, request_id=body["request_id"])
        del answer["choices"][0]["weight_versions"]  # a server that nobody publishes to says nothing of them
        answer["choices"][0]["finish_reason"] = "stop"
        return JSONResponse(answer)

    async def list_models(request):
        return JSONResponse(models if models is not None else {"data": [{"id": "big-model", "max_model_len": 500}]})

    async def metrics(request):
        return PlainTextResponse("")

    routes = [
        Route("/inference/v1/generate", generate, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/metrics", metrics),
    ]
    return Starlette(routes=routes)


def setup_of(folder, url):
    place = PolicyPlace(name="user", tokenizer=str(folder), temperature=0.5, socket="", servers=(url,))
    return Setup(config={}, environment="e", tokenizer="", engine_socket="", log_folder="", policies=(place,))


def test_a_policy_on_vllm_servers_answers_an_environment(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    asked = []

    async def program(task, llm):
        reply = await llm.chat([HI], policy="user")
        return float(reply.text == "theirs")

    async def main(url):
        policy = Sampler(engine=FakeEngine(in_turn("a"), TOKENIZER), renderer=Renderer(TOKENIZER), contract=SamplingContract())
        async with others_of(setup_of(tmp_path, url), CONFIG) as others, thread_pool(f"{SPEC}:Talk") as pool:
            assert others["user"].engine.context_length == 500
            sampling, rollout = SamplingConfig(max_tokens=20), RolloutConfig()
            return await play_episode(make_task(), 0, sampler=policy, others=others, pool=pool, sampling=sampling, rollout=rollout, seed=0)

    TALK.PLAY = program
    with serving(app(asked)) as url:
        rollout = trio.run(main, url)
    assert (rollout.score.value, rollout.reason) == (1.0, "")
    (turn,) = rollout.turns
    assert not turn.trained
    assert (turn.contract.policy, turn.contract.temperature, turn.contract.engine) == ("user", 0.5, "vllm")
    (_, body) = asked[0]
    assert body["model"] == "big-model"
    assert body["sampling_params"]["temperature"] == 0.5


@pytest.mark.parametrize("models", [{"data": []}, {"data": [{"id": "x"}]}, {"data": [{"id": 3, "max_model_len": 5}]}, []])
def test_a_server_that_does_not_say_what_it_serves_is_named(tmp_path, models):
    TOKENIZER.save_pretrained(tmp_path)

    async def main(url):
        async with others_of(setup_of(tmp_path, url), CONFIG):
            pass

    with serving(app([], models=models)) as url, pytest.raises(SamplerUnavailable, match=f"the server {url} of a frozen policy"):
        trio.run(main, url)


def test_a_server_that_is_not_there_is_named(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)

    async def main():
        async with others_of(setup_of(tmp_path, "http://127.0.0.1:9"), CONFIG):
            pass

    with pytest.raises(SamplerUnavailable, match=r"http://127\.0\.0\.1:9 of a frozen policy"):
        trio.run(main)
