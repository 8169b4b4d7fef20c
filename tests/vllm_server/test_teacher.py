"""A teacher on a real vLLM server: its log-probs are those of the same model in process."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import pytest
import real_vllm
import torch
import transformers
import trio

from agentrl.engines.teacher_client import TeacherServers
from agentrl.engines.vllm_setup import PROBED_TEXT
from agentrl.errors import ConfigError, RequestRefused
from agentrl.rollout.tokenizer import load_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CLOSE = 1e-3
"""Nats by which a server's log-probs may differ from transformers', in float32."""
TOP = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory, vllm_python):
    """One without adapters: with them vLLM 0.32 on a CPU dies of prompt log-probs, whose rows its LoRA kernels take for requests."""
    with real_vllm.running(tmp_path_factory.mktemp("teacher"), python=vllm_python) as server:
        yield server


@pytest.fixture(scope="module")
def url(server):
    return server.url


@pytest.fixture(scope="module")
def model(server):
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(server.model_dir, dtype=torch.float32).eval()


def asked(url, body, *, top_k=0, timeout_s=60.0):
    """Run `body(teacher)`."""

    async def main():
        teacher = TeacherServers([url], timeout_s=timeout_s, top_k=top_k)
        try:
            return await body(teacher)
        finally:
            await teacher.aclose()

    return trio.run(main)


def scored(model, ids):
    """[length - 1, vocabulary] log-probs by one forward pass of transformers."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0].float()
    return torch.log_softmax(logits[:-1], -1).numpy()


def test_log_probs_of_given_tokens_are_those_of_the_model_in_process(url, model):
    draw = np.random.default_rng(0)
    texts = [
        (draw.integers(3, model.config.vocab_size, int(length)).astype(np.int32), 1 + at % 4) for at, length in enumerate((5, 40, 200, 64))
    ]
    found = asked(url, lambda teacher: teacher.score_all(texts), top_k=TOP)
    for (ids, first), scores in zip(texts, found, strict=True):
        rows = scored(model, ids)[first - 1 :]
        np.testing.assert_allclose(scores.logprobs, rows[np.arange(len(rows)), ids[first:]], atol=CLOSE, rtol=0)
        np.testing.assert_allclose(scores.top_logprobs, -np.sort(-rows, axis=1)[:, :TOP], atol=CLOSE, rtol=0)
        np.testing.assert_allclose(np.take_along_axis(rows, scores.top_ids.astype(np.int64), 1), scores.top_logprobs, atol=CLOSE, rtol=0)


def test_sixty_four_texts_at_once_are_each_their_own(url, model):
    texts = [(np.array([5, 6, 7, 8 + at], dtype=np.int32), 3) for at in range(64)]
    found = asked(url, lambda teacher: teacher.score_all(texts))
    row = scored(model, np.array([5, 6, 7, 8], dtype=np.int32))[-1]
    np.testing.assert_allclose([scores.logprobs[0] for scores in found], row[8:72], atol=CLOSE, rtol=0)


def test_the_check_at_the_start_passes_for_its_own_tokenizer_and_fails_for_another(url, server):
    ids = load_tokenizer(server.model_dir)(PROBED_TEXT, add_special_tokens=False).input_ids
    asked(url, lambda teacher: teacher.check(PROBED_TEXT, ids))
    with pytest.raises(ConfigError, match="whose tokenizer is another"):
        asked(url, lambda teacher: teacher.check(PROBED_TEXT, [1, *ids]))


def test_more_likeliest_tokens_than_the_server_gives_are_refused_with_the_flag(url, server):
    ids = load_tokenizer(server.model_dir)(PROBED_TEXT, add_special_tokens=False).input_ids
    with pytest.raises(ConfigError, match="--max-logprobs 10000"):
        asked(url, lambda teacher: teacher.check(PROBED_TEXT, ids), top_k=10000)


def test_a_text_of_the_whole_context_is_refused_by_its_length(url):
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        context = json.loads(answer.read())["data"][0]["max_model_len"]
    with pytest.raises(RequestRefused, match=f"{context} tokens does not fit"):
        asked(url, lambda teacher: teacher.score(np.full(context, 5, dtype=np.int32), 1))
    longest = asked(url, lambda teacher: teacher.score(np.full(context - 1, 5, dtype=np.int32), 1))
    assert len(longest.logprobs) == context - 2
