"""Adapters on a real server: versions side by side, and requests that keep theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from publish_fleet import FLYING, IDS, TOLERANCE, Fleet, logprobs_of, worst

from agentrl.engines.vllm_probe import prompt_logprobs
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_transports.lora import LoraTransport
from agentrl.errors import ConfigError
from agentrl.quickstart import model_path
from agentrl.records import Version

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def adapter(seed: int, scale: float) -> tuple[list[tuple[str, torch.Tensor]], dict[str, Any]]:
    """A random adapter on q and down projections of the quickstart's model, in peft's names."""
    draw = torch.Generator().manual_seed(seed)
    config = transformers.AutoConfig.from_pretrained(model_path())
    heads = config.num_attention_heads * config.head_dim
    tensors = []
    for layer in range(config.num_hidden_layers):
        for module, wide, high in (
            ("self_attn.q_proj", config.hidden_size, heads),
            ("mlp.down_proj", config.intermediate_size, config.hidden_size),
        ):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors.append((f"{name}.lora_A.weight", 0.1 * torch.randn(4, wide, generator=draw)))
            tensors.append((f"{name}.lora_B.weight", scale * torch.randn(high, 4, generator=draw)))
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": None,
        "inference_mode": True,
    }


def merged(tensors: list[tuple[str, torch.Tensor]]) -> Any:
    """The quickstart's model with an adapter merged into it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    by_name = dict(tensors)
    with torch.no_grad():
        for name, low in tensors:
            if name.endswith("lora_A.weight"):
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_parameter(f"{layer}.weight").add_(2.0 * by_name[name.replace("lora_A", "lora_B")] @ low)
    return model


def test_adapters_of_several_versions_are_served_side_by_side_and_requests_keep_theirs(fleet: Fleet) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    fleet.publisher("filesystem").publish(base.named_parameters(), Version(step=0), [fleet.url])
    trial, config = adapter(0, 0.0)
    publisher = VllmPublisher(LoraTransport(config, trial, max_loras=3), fleet.control, partial=True)
    fleet.publishers.append(publisher)
    publisher.check([fleet.url])
    models = {f"policy@5.{step}": adapter(step, 0.2)[0] for step in (1, 2, 3, 4)}
    first, second, *later = models
    publisher.publish(models[first], Version(lineage=5, step=1), [fleet.url])
    with fleet.flying(model=first, cache_salt="anew") as choices:
        for step, name in enumerate((second, *later), start=2):  # the first name is unloaded on the way
            result = publisher.publish(models[name], Version(lineage=5, step=step), [fleet.url])
            assert (result.model, result.failed) == (name, {})
            assert result.outcomes[0].paused_s == 0
        assert not choices, "the requests were over before the last adapter came; ask for more of them"
    assert len(choices) == FLYING
    for choice in choices:
        assert choice["finish_reason"] == "length"
        ids = (*IDS, *choice["token_ids"])
        got = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        assert worst(got, logprobs_of(merged(models[first]), ids)[len(IDS) - 1 :]) < TOLERANCE
    served = {one["id"] for one in fleet.server.read("/v1/models", "data")}
    assert {name for name in models if name in served} == set(list(models)[1:])
    for name in list(models)[1:]:
        assert worst(prompt_logprobs(fleet.server, name, IDS), logprobs_of(merged(models[name]), IDS)) < TOLERANCE
    assert worst(prompt_logprobs(fleet.server, "policy", IDS), logprobs_of(base, IDS)) < TOLERANCE
    for name in list(models)[1:]:
        fleet.server.post("/v1/unload_lora_adapter", {"lora_name": name})


def test_adapters_that_the_server_cannot_serve_are_refused_with_the_cure(fleet: Fleet) -> None:
    trial, config = adapter(0, 0.1)
    wide = [(name, torch.cat([tensor] * 256, 0 if "lora_A" in name else 1)) for name, tensor in trial]
    for tensors, changes, message in (
        (wide, {"r": 1024}, "Lower learner.lora.rank, now 1024"),
        (
            [(name.replace("q_proj", "nonsense"), tensor) for name, tensor in trial],
            {"target_modules": ["nonsense", "down_proj"]},
            "Choose other learner.lora.target_modules",
        ),
    ):
        transport = LoraTransport(config | changes, tensors)
        with pytest.raises(ConfigError, match=message):
            transport.check(fleet.server)
        transport.close()
