from __future__ import annotations

from typing import TYPE_CHECKING

import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers

from agentrl.errors import ConfigError
from agentrl.learner.loading import load_policy
from agentrl.learner.packing import pack
from agentrl.learner.samples import Sample, candidates
from agentrl.objectives import Needs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner.model import Policy

CPU = torch.device("cpu")

ARCHITECTURES = {
    "qwen3": {},
    "llama": {"attention_bias": True},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.2},
    "starcoder2": {},
    "mixtral": {"num_local_experts": 3},
}


def load(folder: str, *, trained: bool = True, master: torch.dtype = torch.float32, **options: object) -> Policy:
    return load_policy(fakes.run_config(**options), folder, CPU, master=master, trained=trained)


def samples_of(seed: int) -> list[Sample]:
    return list(candidates(fakes.make_groups(seed), fakes.run_config(), Needs(group_size=2)).samples)


def logprobs(policy: Policy, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return policy(pack(samples, CPU))[0]


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_log_probs_are_those_of_transformers_on_each_row_alone(
    kind: str, temperature: float, model_folder: Callable[..., str]
) -> None:
    folder = model_folder(kind=kind, **ARCHITECTURES[kind])
    policy = load(folder, sampling={"temperature": temperature})
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    samples = samples_of(3)
    packed = logprobs(policy, samples)
    alone = []
    for sample in samples:
        targets = torch.from_numpy(sample.targets).split([len(places) for places in sample.sources])
        for row, places, target in zip(sample.rows, sample.sources, targets, strict=True):
            logits = plain(input_ids=torch.from_numpy(row.astype(np.int64))[None], use_cache=False).logits[0, places]
            alone.append(torch.log_softmax(logits.detach() / temperature, -1).gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-5)


def test_a_neighbour_changes_nothing(model_folder: Callable[..., str]) -> None:
    policy = load(model_folder(kind="gemma3_text", **ARCHITECTURES["gemma3_text"]))
    first, other, third = samples_of(3)[0], samples_of(4)[5], samples_of(5)[9]
    count = first.num_trained
    alone = logprobs(policy, [first])
    for neighbour in (other, third):
        torch.testing.assert_close(logprobs(policy, [first, neighbour])[:count], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(logprobs(policy, [neighbour, first])[-count:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("mamba", {"state_size": 4}, "scores rows in a pack differently"),
        ("gpt_oss", {"num_local_experts": 2, "layer_types": ["full_attention"] * 2}, "s_aux"),
        ("gemma2", {"attn_logit_softcapping": 5.0}, "softcap"),
    ],
)
def test_architectures_that_packing_would_train_wrongly_are_refused(
    kind: str, options: dict[str, object], words: str, tmp_path: Path
) -> None:
    folder = fakes.tiny_model(tmp_path, kind=kind, **options)
    with pytest.raises(ConfigError, match=words):
        load(folder)


def test_a_head_that_does_more_is_refused(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="granite", logits_scaling=3.0)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.logit_scale = 2.0  # a factor that the learner knows, and this architecture does not apply
    config.save_pretrained(folder + "-lies")
    transformers.AutoModelForCausalLM.from_pretrained(folder, config=config).save_pretrained(folder + "-lies")
    with pytest.raises(ConfigError, match="its head does more"):
        load(folder + "-lies")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not load as a causal language model"):
        load(str(tmp_path))


def test_a_model_without_some_of_its_weights_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    whole = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    kept = {name: tensor for name, tensor in whole.state_dict().items() if "layers.0.mlp.down_proj" not in name}
    whole.save_pretrained(tmp_path / "torn", state_dict=kept)
    with pytest.raises(ConfigError, match=r"has no weights for 1 tensors of a .*, such as model\.layers\.0\.mlp\.down_proj\.weight"):
        load(str(tmp_path / "torn"))


def test_dropout_is_off_with_and_without_checkpointing(tmp_path: Path) -> None:
    folder = fakes.tiny_model(tmp_path, kind="opt", dropout=0.5, attention_dropout=0.5, word_embed_proj_dim=32, ffn_dim=48)
    expected = logprobs(load(folder), samples_of(0))
    checkpointed = load(folder, learner={"gradient_checkpointing": True})
    packed, *_ = checkpointed(pack(samples_of(0), CPU))
    torch.testing.assert_close(packed.detach(), expected, rtol=0, atol=1e-6)


def test_gradient_checkpointing_computes_layers_twice_and_the_same_gradient(model_folder: Callable[..., str]) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        policy = load(model_folder(kind="mistral"), learner={"gradient_checkpointing": checkpointing})
        count: list[int] = []
        policy.base.model.layers[0].input_layernorm.register_forward_hook(lambda *_, count=count: count.append(1))
        policy(pack(samples_of(0), CPU))[0].sum().backward()
        calls.append(len(count))
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    assert calls == [1, 2]
    assert fakes.distance(*gradients) < 1e-6


def test_lora_trains_the_adapter_alone_and_starts_from_the_model(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="mistral")  # whose layers are transformers' own with and without an adapter
    policy = load(folder, learner={"lora": {"rank": 2}})
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    samples = samples_of(1)
    torch.testing.assert_close(logprobs(policy, samples), logprobs(load(folder), samples), rtol=0, atol=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.5)
    changed = logprobs(policy, samples)
    with policy.without_adapter():
        reference = logprobs(policy, samples)
    torch.testing.assert_close(reference, logprobs(load(folder, trained=False), samples), rtol=0, atol=1e-6)
    assert (changed - reference).abs().max() > 0.1
    again = load(folder, learner={"lora": {"rank": 2}})
    pairs = zip(policy.named_parameters(), again.named_parameters(), strict=True)
    assert all(torch.equal(left, right) for (name, left), (_, right) in pairs if "lora_A" in name)


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["nowhere"], ["embed_tokens"]])
def test_adapters_of_other_layers_are_refused(targets: list[str], model_folder: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"target_modules|output layer"):
        load(model_folder(kind="qwen3"), learner={"lora": {"target_modules": targets}})


def test_bfloat16_computes_in_half_and_keeps_float32_weights(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="qwen3")
    policy = load(folder, learner={"dtype": "bfloat16"})
    packed, entropy = policy(pack(samples_of(0), CPU))[:2]
    assert packed.dtype == entropy.dtype == torch.float32
    exact = logprobs(load(folder), samples_of(0))
    assert 1e-5 < (packed.detach() - exact).abs().max() < 0.3
    packed.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == parameter.dtype == torch.float32 for parameter in policy.parameters())


def test_a_reference_is_frozen(model_folder: Callable[..., str]) -> None:
    policy = load(model_folder(kind="qwen3"), trained=False, learner={"lora": {"rank": 2}, "gradient_checkpointing": True})
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert isinstance(policy.model, transformers.PreTrainedModel)
