"""The endpoint as OpenAI's own client meets it, and as a program that misbehaves does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import httpx
import pytest

from agentrl.llm import BudgetSpent, Call, Reply, SamplingFailed
from agentrl.servers.openai_endpoint import openai_endpoint

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"far": {"type": "integer"}}}}}
CALLED = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": '{"far": 3}'}}


@dataclass
class FakeLLM:
    """Says what it was asked, or what a test wants."""

    fails: Exception | None = None
    asked: list = field(default_factory=list)

    async def chat(self, messages, **options):
        await asyncio.sleep(0)
        self.asked.append((messages, options))
        if self.fails is not None:
            raise self.fails
        number = len(self.asked) - 1
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        if options["tools"]:
            message = {"role": "assistant", "content": "", "reasoning_content": "far?", "tool_calls": [CALLED]}
            return Reply(
                message=message, text="x", calls=(Call(id="call00000", name="look", arguments={"far": 3}),), number=number, usage=usage
            )
        message = {"role": "assistant", "content": f"said {number}"}
        return Reply(message=message, text=f"said {number}", number=number, usage=usage, finish_reason="length" if number else "stop")

    def reward(self, value, *, reply=None): ...


def with_endpoint(use, llm=None, **options):
    """Run `use(endpoint, llm)` against a served endpoint."""
    llm = llm or FakeLLM()

    async def main():
        async with openai_endpoint(llm, **options) as endpoint:
            return await use(endpoint, llm)

    return asyncio.run(main())


def with_client(use, llm=None, **options):
    """The same, given OpenAI's client in place of the endpoint."""
    openai = pytest.importorskip("openai")

    async def run(endpoint, llm):
        async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0) as client:
            return await use(client, llm)

    return with_endpoint(run, llm, **options)


async def post(endpoint, body, key=None):
    headers = {"authorization": f"Bearer {key or endpoint.api_key}"}
    async with httpx.AsyncClient() as client:
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        return await client.post(f"{endpoint.base_url}/chat/completions", headers=headers, **sent)


def test_openais_client_gets_an_answer():
    async def use(client, llm):
        answer = await client.chat.completions.create(model="gpt-4o", messages=HI, temperature=0.2, max_tokens=9)
        assert answer.choices[0].message.content == "said 0"
        assert (answer.choices[0].finish_reason, answer.usage.total_tokens, answer.model) == ("stop", 9, "gpt-4o")
        assert llm.asked == [(HI, {"tools": [], "policy": "policy", "max_tokens": 9})]

    with_client(use)


def test_openais_client_gets_calls_and_reasoning():
    async def use(client, llm):
        answer = await client.chat.completions.create(model="m", messages=HI, tools=[TOOL])
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"far": 3}
        assert choice.message.reasoning_content == "far?"
        assert llm.asked[0][1]["tools"] == [TOOL]
        await client.chat.completions.create(model="m", messages=HI, tools=[TOOL], tool_choice="none")
        assert llm.asked[1][1]["tools"] == []

    with_client(use)


def test_openais_client_can_stream():
    async def use(client, llm):
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "said 0"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, "stop"]
        assert chunks[-1].usage.completion_tokens == 2
        stream = await client.chat.completions.create(model="m", messages=HI, tools=[TOOL], stream=True)
        (call,) = [chunk.choices[0].delta.tool_calls[0] async for chunk in stream if chunk.choices[0].delta.tool_calls]
        assert (call.index, call.function.name) == (0, "look")

    with_client(use)


def test_several_choices_are_sampled_apart():
    async def use(client, llm):
        answer = await client.chat.completions.create(model="m", messages=HI, n=3)
        assert sorted(choice.message.content for choice in answer.choices) == ["said 0", "said 1", "said 2"]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]

    with_client(use)


def test_models_name_policies():
    async def use(client, llm):
        await client.chat.completions.create(model="user", messages=HI)
        assert llm.asked[0][1]["policy"] == "simulator"
        assert [model.id async for model in client.models.list()] == ["user"]
        with pytest.raises(Exception, match="there is no model 'other'"):
            await client.chat.completions.create(model="other", messages=HI)

    with_client(use, models={"user": "simulator"}, default=None)


def test_a_spent_budget_is_an_error_that_programs_know_and_is_remembered():
    async def use(endpoint, llm):
        answer = await post(endpoint, {"model": "m", "messages": HI})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert endpoint.spent == "no tokens are left"

    with_endpoint(use, FakeLLM(fails=BudgetSpent("no tokens are left")))


def test_what_cannot_be_sampled_is_refused_in_words():
    async def use(endpoint, llm):
        answer = await post(endpoint, {"model": "m", "messages": HI})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no such thing")
        assert endpoint.refused == ["no such thing"]

    with_endpoint(use, FakeLLM(fails=SamplingFailed("no such thing")))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xff{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": ["hi"]}, "messages must be a list"),
        ({"messages": HI, "tools": "x"}, "tools must be a list"),
        ({"messages": HI, "tools": [{"name": "x"}]}, "tools must be a list"),
        ({"messages": HI, "stop": ["x"]}, "stop is not available"),
        ({"messages": HI, "logprobs": True}, "logprobs is not available"),
        ({"messages": HI, "response_format": {"type": "json_object"}}, "response_format is not available"),
        ({"messages": HI, "tool_choice": "required"}, "cannot be forced"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens must be"),
        ({"messages": HI, "n": True}, "n must be"),
    ],
)
def test_a_bad_request_is_refused_in_words(body, said):
    async def use(endpoint, llm):
        answer = await post(endpoint, body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
        assert not llm.asked

    with_endpoint(use)


def test_every_episode_has_a_key_of_its_own():
    async def use(endpoint, llm):
        for key in ("wrong", endpoint.api_key + "x"):
            assert (await post(endpoint, {"messages": HI}, key)).status_code == 401
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{endpoint.base_url}/models")).status_code == 401
        assert not llm.asked
        return endpoint.api_key

    assert with_endpoint(use) != with_endpoint(use)


def test_what_is_ignored_is_named():
    async def use(endpoint, llm):
        answer = await post(endpoint, {"messages": HI, "temperature": 0.1, "seed": 3, "response_format": {"type": "text"}})
        assert answer.headers["x-agentrl-ignored"] == "temperature, seed"

    with_endpoint(use)


def test_nothing_listens_after_the_episode():
    async def use(endpoint, llm):
        return endpoint

    endpoint = with_endpoint(use)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{endpoint.base_url}/models")


@dataclass
class SlowLLM(FakeLLM):
    """Never answers; the first call may fail."""

    cancelled: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, messages, **options):
        self.asked.append((messages, options))
        if self.fails is not None and len(self.asked) == 1:
            await self.started.wait()
            raise self.fails
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
            self.ended.set()


def test_a_client_that_goes_away_is_not_sampled_for():
    async def use(endpoint, llm):
        asking = asyncio.ensure_future(post(endpoint, {"model": "m", "messages": HI, "n": 2}))
        await asyncio.wait_for(llm.started.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(llm.ended.wait(), 10)
        async with httpx.AsyncClient() as client:
            await client.get(f"{endpoint.base_url}/models")  # by its answer, that request is over
        assert llm.cancelled == 2
        assert "closed the connection" in endpoint.refused[0]

    with_endpoint(use, SlowLLM())


def test_where_one_choice_fails_the_others_are_not_sampled_on():
    async def use(endpoint, llm):
        answer = await post(endpoint, {"model": "m", "messages": HI, "n": 3})
        assert answer.status_code == 400
        assert llm.cancelled == 2

    with_endpoint(use, SlowLLM(fails=BudgetSpent("no tokens are left")))


def test_an_answer_that_is_still_awaited_does_not_keep_the_endpoint_open(caplog):
    async def use(endpoint, llm):
        asking = asyncio.ensure_future(post(endpoint, {"model": "m", "messages": HI}))
        await asyncio.wait_for(llm.started.wait(), 10)
        return asking

    async def main():
        llm = SlowLLM()
        async with openai_endpoint(llm) as endpoint:
            asking = await use(endpoint, llm)
        assert llm.cancelled == 1
        assert (await asyncio.wait_for(asking, 10)).status_code == 500

    asyncio.run(main())
    assert not caplog.records


def test_the_role_of_developers_is_the_systems():
    async def use(endpoint, llm):
        await post(endpoint, {"model": "m", "messages": [{"role": "developer", "content": "be brief"}, *HI]})
        assert llm.asked[0][0][0] == {"role": "system", "content": "be brief"}

    with_endpoint(use)


def test_odd_requests_are_answered_or_refused():
    async def use(endpoint, llm):
        async with httpx.AsyncClient(base_url=endpoint.base_url, headers={"authorization": f"Bearer {endpoint.api_key}"}) as client:
            odd = await client.post("/chat/completions", json={"messages": HI, "stream_options": [1]})
            assert odd.status_code == 400
            assert "stream_options" in odd.text
            body = b'{"messages": [{"role": "user", "content": "hi"}], "model": "\\ud800"}'
            return await client.post("/chat/completions", content=body)

    answer = with_endpoint(use)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "said 0"
