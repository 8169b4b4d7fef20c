"""Two models in one engine: what each computes, keeps and forgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from mixture_truth import Pair, error_of

from agentrl.config_engine import EngineConfig
from agentrl.engines import scheduler as scheduler_module
from agentrl.engines.decoder import load_reference
from agentrl.engines.requests import Refused
from agentrl.errors import ConfigError

PROMPT = np.arange(40)


@pytest.fixture
def pair(fresh, models):
    """A policy that may be changed and a reference, over one architecture, in one scheduler."""
    return lambda name="qwen3", **options: Pair(fresh(name), models(name, 1), **options)


def test_an_engine_with_a_reference_serves_the_others_bit_for_bit_as_one_without(models, make_request, run_all):
    results = []
    for options in ({}, {"reference": models("qwen3", 1).loaded}):
        scheduler = models("qwen3").scheduler(num_slots=4, **options)
        random = np.random.default_rng(5)
        for index in range(12):
            prompt = random.integers(0, 97, 1 + 4 * index)
            scheduler.submit((0, index), make_request(prompt, 5 + 7 * index, seed=index, session=str(index % 3)))
        results.append(run_all(scheduler))
    for key, completion in results[0].items():
        assert completion.ids.tobytes() == results[1][key].ids.tobytes()
        assert completion.logprobs.tobytes() == results[1][key].logprobs.tobytes()


def test_each_model_computes_only_what_counts(pair, make_request, run_all):
    both = pair()
    both.scheduler.submit((0, 0), make_request(PROMPT, 10))
    run_all(both.scheduler)
    assert both.computed == (49, 0)
    assert both.scheduler._reference.allocated_bytes() == 0
    both.scheduler.submit((0, 1), make_request(np.arange(50, 90), 10, reference_share=1.0))
    run_all(both.scheduler)
    assert both.computed == (49, 49)
    both.scheduler.submit((0, 2), make_request(np.arange(20, 60), 10, reference_share=0.5))
    run_all(both.scheduler)
    assert both.computed == (98, 98)
    assert both.scheduler.counters.tokens_prefilled == 4 * 40


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_requests_of_all_shares_in_one_batch_sample_what_each_samples_alone(models, make_request, run_all, name):
    """Four slots for sixteen ragged requests: they join, leave, move between pools and fill each other's rows in both caches."""
    policy, reference = models(name), models(name, 1)
    random = np.random.default_rng(5)
    shares = [0.0, 0.3, 1.0, 0.8] * 4
    prompts = [random.integers(0, 97, int(random.integers(1, 50))) for _ in shares]
    requests = [
        make_request(prompt, int(random.integers(1, 90)), seed=100 + index, reference_share=share)
        for index, (prompt, share) in enumerate(zip(prompts, shares, strict=True))
    ]
    crowded = policy.scheduler(num_slots=4, reference=reference.loaded)
    for index, request in enumerate(requests):
        crowded.submit((0, index), request)
    together = run_all(crowded)
    for index, request in enumerate(requests):
        alone = policy.scheduler(num_slots=1, reference=reference.loaded if request.contract.reference_share else None)
        alone.submit((0, index), request)
        single, completion = run_all(alone)[0, index], together[0, index]
        assert np.array_equal(single.ids, completion.ids)
        assert np.abs(single.logprobs - completion.logprobs).max() < 1e-5
        assert error_of(completion, prompts[index], policy.reference, reference.reference, shares[index]) < 2e-5


def test_a_prompt_is_computed_once_by_each_model_whatever_shares_it_is_asked_with(pair, make_request, run_all):
    both = pair(num_slots=6)
    shares = [0.0, 0.3, 1.0, 0.3, 0.0, 1.0, 0.3, 0.0]  # two of them join when others have left
    for index, share in enumerate(shares):
        both.scheduler.submit((0, index), make_request(PROMPT, 12 + 3 * index, seed=index, reference_share=share))
    done = run_all(both.scheduler)
    assert both.scheduler.counters.tokens_prefilled == 2 * 40 + 3
    for index, share in enumerate(shares):
        assert both.error(PROMPT, done[0, index], share) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_a_turn_computes_only_its_new_tail_in_both_models(pair, make_request, run_all, name):
    both = pair(name)
    both.scheduler.submit((0, 0), make_request(PROMPT, 10, session="a", seed=1, reference_share=0.3))
    first = run_all(both.scheduler)[0, 0]
    longer = np.concatenate([PROMPT, first.ids, [7, 8, 9]])
    computed = both.computed
    both.scheduler.submit((0, 1), make_request(longer, 10, session="a", seed=2, reference_share=0.3))
    second = run_all(both.scheduler)[0, 1]
    assert both.scheduler.counters.tokens_reused == 2 * (40 + 9)
    assert both.computed == (computed[0] + 4 + 9, computed[1] + 4 + 9)
    assert both.error(longer, second, 0.3) < 1e-5


def test_a_session_may_change_its_share_from_turn_to_turn(pair, make_request, run_all):
    both = pair()
    ids = PROMPT
    for turn, share in enumerate((0.0, 0.3, 1.0, 0.0, 0.6)):
        both.scheduler.submit((0, turn), make_request(ids, 6, session="a", seed=turn, reference_share=share))
        completion = run_all(both.scheduler)[0, turn]
        assert both.error(ids, completion, share) < 1e-5
        ids = np.concatenate([ids, completion.ids, [turn]])


def test_the_caches_of_both_models_count_against_the_memory(pair, make_request, run_all):
    """Room for three caches of 64 tokens: three plain requests, or a plain one and a mixture."""
    room = 3 * 64 * (2 * 2 * 16 * 3 * 4)
    for share, running in ((0.0, 3), (1.0, 3), (0.5, 1)):
        both = pair(memory_bytes=room)
        for index in range(4):
            both.scheduler.submit((0, index), make_request(PROMPT + index, 20, seed=index, reference_share=share))
        both.scheduler.step()
        assert both.scheduler.num_running == running
        assert len(run_all(both.scheduler)) == 4
        assert both.scheduler._reserved == 0


def test_caches_of_earlier_turns_have_no_more_room_than_with_one_model(models):
    policy, reference = models("qwen3"), models("gpt2", 1)  # 384 and 512 bytes of cache a token
    for options in ({}, {"reference": reference.loaded}):
        scheduler = policy.scheduler(memory_bytes=1 << 20, **options)
        rooms = [half._prefixes._most_bytes for half in scheduler._halves]
        assert (1 << 18) - 1 <= sum(rooms) <= 1 << 18


def test_prompts_that_both_models_compute_count_twice_for_what_one_step_may_compute(pair, make_request, monkeypatch):
    monkeypatch.setattr(scheduler_module, "JOINING_TOKENS", 100)
    for share, running in ((0.0, 2), (0.5, 1)):
        both = pair()
        for index in range(4):
            both.scheduler.submit((0, index), make_request(PROMPT + index, 20, reference_share=share))
        both.scheduler.step()
        assert both.scheduler.num_running == running


def test_an_aborted_mixture_leaves_both_caches(pair, make_request, run_all):
    both = pair(num_slots=2)
    both.scheduler.submit((0, 0), make_request(PROMPT, 100, session="a", reference_share=0.5))
    both.scheduler.submit((0, 1), make_request(PROMPT, 40, seed=1, reference_share=0.5))
    both.scheduler.submit((1, 0), make_request([5], 5, reference_share=1.0))
    for _ in range(30):
        both.scheduler.step()
    both.scheduler.abort((0, 0))
    both.scheduler.abort_client(1)
    assert (both.scheduler.num_running, both.scheduler.num_waiting) == (1, 0)
    both.scheduler.submit((0, 2), make_request(PROMPT, 20, seed=2, reference_share=0.2))
    done = run_all(both.scheduler)
    assert set(done) == {(0, 1), (0, 2)}
    assert both.error(PROMPT, done[0, 1], 0.5) < 1e-5
    assert both.error(PROMPT, done[0, 2], 0.2) < 1e-5
    assert not any(pool.slots for half in both.scheduler._halves for pool in half._cache.pools)


def test_a_broken_reference_is_named(models, fresh, make_request):
    broken = fresh("qwen3")
    binding = broken.loaded.decoder.weights.bindings["model.layers.0.self_attn.v_proj.weight"]
    with torch.inference_mode():
        binding.write(torch.full(binding.shape, torch.nan))
    scheduler = models("qwen3").scheduler(reference=broken.loaded)
    scheduler.submit((0, 0), make_request(PROMPT, 4, reference_share=1.0))
    (failed,) = scheduler.step()
    assert "the logits of the reference model are not finite" in failed.result


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_an_engine_without_a_reference_refuses_to_sample_from_it(models, make_request, share):
    with pytest.raises(Refused, match=rf"reference_share is {share:g} and this engine holds no reference model; start it with one"):
        models("qwen3").scheduler().submit((0, 0), make_request([1], reference_share=share))


@pytest.mark.parametrize("share", [-0.1, 1.001, float("nan"), float("inf")])
def test_what_is_no_share_is_refused(models, make_request, share):
    scheduler = models("qwen3").scheduler(reference=models("qwen3", 1).loaded)
    with pytest.raises(Refused, match="reference_share must be a number from 0 to 1"):
        scheduler.submit((0, 0), make_request([1], reference_share=share))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 98}, "scores 98 ids and the policy 97: their logits cannot be mixed"),
        ({"max_position_embeddings": 128}, r"allows 128 tokens of context and the policy has 256; set engine\.context_length=128"),
    ],
)
def test_a_reference_that_does_not_fit_the_policy_is_refused(models, tmp_path, changes, message):
    policy = models("qwen3")
    config = transformers.AutoConfig.from_pretrained(policy.folder)
    for key, value in changes.items():
        setattr(config, key, value)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_reference(str(tmp_path), EngineConfig(device="cpu"), policy.loaded)


def test_a_reference_that_does_not_load_is_named(models, tmp_path):
    with pytest.raises(ConfigError, match=r"the reference model: model .* does not load"):
        load_reference(str(tmp_path), EngineConfig(device="cpu"), models("qwen3").loaded)
    loaded = load_reference(models("gpt2").folder, EngineConfig(device="cpu"), models("qwen3").loaded)
    assert (loaded.model_type, loaded.context_length) == ("gpt2", 256)
