"""The frozen policies as a rollout process reaches them."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from agentrl.dispatch import PolicyPlace, Served, Serving, Setup
from agentrl.errors import SamplerUnavailable
from agentrl.records import SamplingContract, Version
from agentrl.rollout.tree import Sampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentrl.config import RunConfig
    from agentrl.engines.protocol import Engine

ASK_S = 30.0
"""Longest wait for a server to say what it serves."""


@asynccontextmanager
async def others_of(setup: Setup, config: RunConfig) -> AsyncIterator[dict[str, Sampler]]:
    """Connect to the frozen policies of a run, by the names that environments call them.

    Raises `SamplerUnavailable` where one cannot be reached, `ConfigError` where its tokenizer does not load.
    """
    from agentrl.rollout.render import Renderer

    async with AsyncExitStack() as stack:
        samplers: dict[str, Sampler] = {}
        for place in setup.policies:
            renderer = await trio.to_thread.run_sync(Renderer.load, place.tokenizer, config.sampling.stop)
            engine, dtype = await _engine(place, config, stack)
            kind = "vllm" if place.servers else "embedded"
            contract = SamplingContract(policy=place.name, temperature=place.temperature, dtype=dtype, engine=kind)
            samplers[place.name] = Sampler(engine=engine, renderer=renderer, contract=contract, trained=False)
        yield samplers


async def _engine(place: PolicyPlace, config: RunConfig, stack: AsyncExitStack) -> tuple[Engine, str]:
    """The engine of a policy, and the type of its weights as far as that is known."""
    if not place.servers:
        from agentrl.engines.embedded import EmbeddedEngine

        embedded = await EmbeddedEngine.connect(place.socket, timeout_s=config.engine.timeout_s)
        stack.push_async_callback(embedded.aclose)
        return embedded, embedded.dtype
    from agentrl.engines.vllm import VllmEngine

    key = os.environ.get(config.engine.api_key_env, "")
    facts = [await trio.to_thread.run_sync(partial(_served, url, key)) for url in place.servers]
    opened = VllmEngine.open(timeout_s=config.engine.timeout_s, on_suspect=lambda url, why: None, api_key=key)
    engine = await stack.enter_async_context(opened)
    served = tuple(Served(url=url, model=fact["id"], version=Version(), fixed=True) for url, fact in zip(place.servers, facts, strict=True))
    engine.update(Serving(servers=served, context_length=min(int(fact["max_model_len"]) for fact in facts)))
    return engine, "auto"


def _served(url: str, key: str) -> dict[str, Any]:
    """What a vLLM server serves, by its own words."""
    import httpx

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=ASK_S)
        fact: dict[str, Any] = answer.raise_for_status().json()["data"][0]
        if not isinstance(fact["id"], str) or int(fact["max_model_len"]) < 1:
            raise ValueError(f"it says {fact!r:.200}")
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SamplerUnavailable(f"the server {url} of a frozen policy does not say what it serves: {error}") from error
    return fact
