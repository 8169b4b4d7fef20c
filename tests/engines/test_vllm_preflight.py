from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from vllm_server_fake import SETTINGS, FakeServers, servers

from agentrl.engines.vllm_control import BROKEN, RouteFailed
from agentrl.engines.vllm_preflight import Expectations, check_server, claim, release
from agentrl.engines.vllm_probe import prompt_logprobs
from agentrl.errors import ConfigError

ONE = "http://127.0.0.1:1"
GOOD: dict[str, Any] = {
    "owner": "run-a",
    "context_length": 512,
    "model": {"model_type": "qwen3", "vocab_size": 97, "hidden_size": 32},
    "dtype": "float32",
    "text": "2+3=",
    "text_ids": (50, 43, 51, 61),
}


def settings(part: str, **changes: object) -> dict[str, Any]:
    """What `/server_info` answers, with one part changed."""
    changed: dict[str, Any] = copy.deepcopy(SETTINGS)
    if part == "vllm_env":
        changed[part] |= changes
    else:
        changed["vllm_config"][part] = {**changed["vllm_config"][part], **changes} if changes else None
    return changed


def test_a_good_server_is_described_and_claimed() -> None:
    fleet = servers()
    facts = check_server(fleet.control(ONE), Expectations(**GOOD))
    assert (facts.models, facts.context_length, facts.dtype, facts.vllm, facts.vocab_size) == (("policy",), 512, "float32", "0.32.0", 97)
    assert (facts.max_lora_rank, facts.max_loras, facts.backend, facts.weight_version, facts.world_size) == (16, 3, "agentrl", "default", 1)
    assert fleet.servers[0].holder == "run-a"


@pytest.mark.parametrize(
    ("answers", "expected", "message"),
    [
        ({"/version": httpx.ConnectError("refused")}, {}, "nothing answers at http://127.0.0.1:1 .*agentrl serve"),
        ({"/version": 404}, {}, "is not a vLLM server"),
        ({"/version": "hello"}, {}, "is not a vLLM server"),
        ({"/version": 401}, {}, "asks for an API key .*engine.api_key_env"),
        ({"/v1/models": 401}, {}, "asks for an API key .*AGENTRL_VLLM_API_KEY"),
        ({"/v1/models": {"data": []}}, {}, "serves no model"),
        ({"/server_info": 404}, {}, "VLLM_SERVER_DEV_MODE=1"),
        ({"/server_info": {}}, {}, "does not describe itself"),
        ({"/server_info": settings("model_config")}, {}, "does not describe itself as 0.32"),
        ({"/v1/models": {"data": [{"id": "gpt", "max_model_len": 512}]}}, {}, "serves gpt .*--served-model-name policy"),
        ({}, {"model": {"hidden_size": 64, "vocab_size": 97}}, "another model .*hidden_size 32 instead of 64"),
        ({}, {"context_length": 1024}, "--max-model-len 1024, or set engine.context_length=512"),
        ({}, {"dtype": "bfloat16"}, "--dtype bfloat16, or set engine.dtype=float32"),
        ({}, {"text_ids": (1, 2)}, "another tokenizer"),
        ({"/server_info": settings("model_config", generation_config="auto")}, {}, "--generation-config vllm"),
        ({"/server_info": settings("model_config", override_generation_config={"top_k": 20})}, {}, "top_k.*without --override-generation"),
        ({"/server_info": settings("model_config", logprobs_mode="raw_logprobs")}, {}, "raw_logprobs.*--logprobs-mode processed_logprobs"),
        ({"/server_info": settings("scheduler_config", enable_chunked_prefill=True)}, {}, "--no-enable-chunked-prefill"),
        ({"/inference/v1/generate": 404}, {}, "--enable-scale-out"),
        ({"/inference/v1/generate": {"choices": []}}, {}, "returns no log-probs"),
        ({"/server_info": settings("weight_transfer_config")}, {}, 'no weight transfer .*{"backend": "agentrl"}'),
        ({"/server_info": settings("weight_transfer_config", backend="nccl")}, {}, "has nccl .*or set engine.transport=nccl"),
        ({}, {"transport": "nccl"}, '{"backend": "nccl"}.*or set engine.transport=filesystem'),
        ({"/server_info": settings("lora_config")}, {"transport": "lora", "lora_rank": 8}, "--enable-lora --max-lora-rank 8"),
        ({}, {"transport": "lora", "lora_rank": 32}, "up to rank 16 and learner.lora.rank is 32.*learner.lora.rank=16"),
        (
            {"/server_info": settings("vllm_env", VLLM_ALLOW_RUNTIME_LORA_UPDATING=False)},
            {"transport": "lora", "lora_rank": 8},
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        ),
        ({"agentrl_lease": 500}, {}, "--worker-extension-cls"),
    ],
)
def test_a_server_that_would_train_wrongly_is_refused(answers: dict[str, Any], expected: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_server(servers(answers=answers).control(ONE), Expectations(**{**GOOD, **expected}))


def test_a_mode_that_a_server_states_wrongly_is_found_by_what_it_does() -> None:
    fleet = servers()
    [server] = fleet.servers
    server.on_inference_v1_generate = lambda body: {  # type: ignore[method-assign]
        "choices": [{"logprobs": {"content": [{"top_logprobs": [{"logprob": -0.2}, {"logprob": -2.0}]}]}}]
    }
    with pytest.raises(ConfigError, match="processed_logprobs"):
        check_server(fleet.control(ONE), Expectations(**GOOD))


@pytest.mark.parametrize("gap", [0.0, 5e-4, 30.0], ids=["uniform", "nearly", "certain"])
def test_a_distribution_that_tells_nothing_is_no_reason_to_refuse(gap: float) -> None:
    check_server(servers(gap=gap).control(ONE), Expectations(**GOOD))


@pytest.mark.parametrize("state", [{"paused": True}, {"version": BROKEN}], ids=["paused", "broken"])
def test_a_server_that_somebody_left_in_the_middle_of_an_update_is_not_asked_for_tokens(state: dict[str, Any]) -> None:
    fleet = servers(**state, answers={"/inference/v1/generate": httpx.ReadTimeout("never")})
    check_server(fleet.control(ONE), Expectations(**GOOD))
    assert "/inference/v1/generate" not in fleet.servers[0].calls


def test_a_key_is_sent_and_a_wrong_one_is_named() -> None:
    locked = servers(key="secret")
    right = FakeServers(locked.servers, key="secret")
    check_server(right.control(ONE), Expectations(**GOOD))
    for key in ("", "guess"):
        with pytest.raises(ConfigError, match="asks for an API key"):
            check_server(FakeServers(locked.servers, key=key).control(ONE), Expectations(**GOOD))


def test_a_server_belongs_to_one_run_at_a_time() -> None:
    fleet = servers()
    server = fleet.control(ONE)
    check_server(server, Expectations(**GOOD))
    claim(server, "run-a")  # renewed, or the same run resumed
    with pytest.raises(ConfigError, match=r"used by another run, 'run-a'.*60\.0 s after its last sign of life"):
        check_server(server, Expectations(**{**GOOD, "owner": "run-b"}))
    release(server, "run-a")
    check_server(server, Expectations(**{**GOOD, "owner": "run-b"}))


def test_a_server_without_the_extension_is_taken_where_the_transport_needs_none() -> None:
    fleet = servers(answers={"agentrl_lease": 500, "agentrl_received": 500, "agentrl_model": 500})
    facts = check_server(fleet.control(ONE), Expectations(**{**GOOD, "transport": "lora", "lora_rank": 8}))
    assert facts.model == {}


@pytest.mark.parametrize("answer", [{}, {"prompt_logprobs": None}, {"prompt_logprobs": [None, {"8": {"logprob": -1}}]}, None, "text"])
def test_log_probs_that_are_not_there_are_an_error(answer: object) -> None:
    with pytest.raises(RouteFailed, match="gives no log-probs of a prompt"):
        prompt_logprobs(servers(answers={"/inference/v1/generate": answer}).control(ONE), "policy", (5, 7))
