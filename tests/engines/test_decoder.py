from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from agentrl.config_engine import EngineConfig
from agentrl.engines.decoder import Probe, choose_decoder, load_decoder
from agentrl.engines.decoder_fast import LARGE_WEIGHT, FastDecoder
from agentrl.engines.decoder_generic import GenericDecoder
from agentrl.engines.families import Unsupported
from agentrl.engines.kv import KVCache
from agentrl.engines.step import Segment, plan_step
from agentrl.errors import ConfigError

FAST = ["llama", "llama3_rope", "qwen2", "qwen3", "mistral", "gemma3"]
GENERIC = ["gpt2", "phi", "gemma2", "gpt_oss"]


@pytest.mark.parametrize("name", FAST)
def test_common_architectures_take_the_fast_path(models, name):
    assert models(name).loaded.description == "fast"


@pytest.mark.parametrize("name", GENERIC)
def test_other_architectures_take_the_generic_path_and_say_why(models, name):
    assert models(name).loaded.description.startswith("generic: there is no fast path for")


@pytest.mark.parametrize("name", FAST + GENERIC)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_logprobs_are_those_of_transformers(models, make_request, run_all, name, temperature):
    model = models(name)
    scheduler = model.scheduler()
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 97, size) for size in (1, 5, 5, 17, 40, 70)]
    for index, prompt in enumerate(prompts):
        scheduler.submit((0, index), make_request(prompt, 40, seed=index, temperature=temperature))
    done = run_all(scheduler)
    differences = np.concatenate(
        [done[0, index].logprobs - model.logprobs(prompt, done[0, index], temperature) for index, prompt in enumerate(prompts)]
    )
    assert len(differences) == 40 * len(prompts)
    assert np.abs(differences).mean() < 1e-5
    assert np.abs(differences).max() < 1e-4


def test_the_generic_path_agrees_with_the_fast_one(models, make_request, run_all):
    model = models("gemma3")
    with torch.inference_mode():
        generic = GenericDecoder(transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval())
    tokens = np.random.default_rng(0).integers(0, 97, (2, 30)).astype(np.int32)
    logits = []
    for decoder in (model.loaded.decoder, generic):
        cache = KVCache(decoder.shapes, num_slots=2, context_length=64, dtype=torch.float32, device=torch.device("cpu"))
        for slot in range(2):
            cache.open(slot, 30)
        segments = [Segment(slot=0, start=0, stop=30), Segment(slot=1, start=0, stop=9)]
        with torch.inference_mode():
            step, _ = plan_step(cache, tokens, np.array([30, 9]), [0] * len(cache.pools), segments, {})
            logits.append(decoder.forward(step).clone())
    assert torch.allclose(logits[0], logits[1], atol=1e-4)


def test_bfloat16_is_close_to_transformers_in_bfloat16(models):
    model = transformers.AutoModelForCausalLM.from_pretrained(models("qwen3").folder, dtype=torch.bfloat16).eval()
    decoder, description = choose_decoder(model, 64)
    assert description == "fast"
    assert decoder.weights.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "options"), [("llama", {"mlp_bias": True}), ("qwen3", {"hidden_act": "relu"})])
def test_options_that_the_fast_path_does_not_handle_take_the_generic_one(models, name, options):
    config = transformers.AutoConfig.from_pretrained(models(name).folder)
    for key, value in options.items():
        setattr(config, key, value)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    assert choose_decoder(model, 64)[1].startswith("generic: the fast path")


def test_large_matrices_have_a_product_of_their_own():
    config = transformers.Qwen3Config(
        vocab_size=8200,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=4100,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    assert LARGE_WEIGHT <= 2 * 4100 * 64
    with torch.inference_mode():
        probe = Probe.of(model, 64)
        decoder = FastDecoder(model, 64)
        probe.check(decoder)
        decoder.weights.bindings["model.norm.weight"].view.mul_(1.1)
        with pytest.raises(Unsupported, match="logits differ"):
            probe.check(decoder)


def test_a_model_that_no_path_reproduces_is_refused():
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)  # its attention has no interface to plug into
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match="cannot serve BloomForCausalLM exactly"):
        choose_decoder(model, 64)


def test_a_context_longer_than_the_model_allows_is_refused(models):
    with pytest.raises(ConfigError, match=r"context_length is 1000; the model allows at most 256"):
        load_decoder(models("llama").folder, EngineConfig(context_length=1000, device="cpu"))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not load as a causal language model"):
        load_decoder(str(tmp_path), EngineConfig(device="cpu"))


def test_a_model_without_some_of_its_weights_is_refused(models, tmp_path):
    whole = transformers.AutoModelForCausalLM.from_pretrained(models("llama").folder)
    kept = {name: tensor for name, tensor in whole.state_dict().items() if "layers.0.mlp.down_proj" not in name}
    whole.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(
        ConfigError, match=r"no weights for tensors of a LlamaForCausalLM, such as model\.layers\.0\.mlp\.down_proj\.weight"
    ):
        load_decoder(str(tmp_path), EngineConfig(device="cpu"))
