from __future__ import annotations

import numpy as np
import pytest
import torch

from agentrl.engines.requests import Refused
from agentrl.records import Version, VersionRun


def submit_ragged(scheduler, make_request, count=12):
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 97, int(random.integers(1, 50))) for _ in range(count)]
    for index, prompt in enumerate(prompts):
        scheduler.submit((0, index), make_request(prompt, int(random.integers(1, 90)), seed=100 + index))
    return prompts


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_a_batch_samples_what_each_request_samples_alone(models, make_request, run_all, name):
    """Four slots for twelve ragged requests: they join, leave, move between pools and fill each other's rows."""
    model = models(name)
    crowded = model.scheduler(num_slots=4)
    submit_ragged(crowded, make_request)
    together = run_all(crowded)
    assert len(together) == 12
    for key, completion in together.items():
        alone = model.scheduler(num_slots=1)
        submit_ragged(alone, make_request)
        for other in together:
            if other != key:
                alone.abort(other)
        single = run_all(alone)[key]
        assert np.array_equal(single.ids, completion.ids)
        assert np.abs(single.logprobs - completion.logprobs).max() < 1e-4
        assert single.finish_reason == completion.finish_reason


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(models, make_request, run_all):
    scheduler = models("qwen3").scheduler()
    for index, seed in enumerate((1, 1, 2)):
        scheduler.submit((0, index), make_request([4, 5, 6], 30, seed=seed))
    done = run_all(scheduler)
    assert np.array_equal(done[0, 0].ids, done[0, 1].ids)
    assert not np.array_equal(done[0, 0].ids, done[0, 2].ids)


def test_more_tokens_than_random_numbers_drawn_at_once(models, make_request, run_all):
    model = models("qwen3")
    scheduler = model.scheduler()
    scheduler.submit((0, 0), make_request([1, 2], 200, seed=9))
    completion = run_all(scheduler)[0, 0]
    assert len(completion.ids) == 200
    assert np.abs(completion.logprobs - model.logprobs(np.array([1, 2]), completion)).max() < 1e-4


def test_a_stop_id_ends_a_completion_and_is_part_of_it(models, make_request, run_all):
    scheduler = models("qwen3").scheduler()
    scheduler.submit((0, 0), make_request([1, 2], 60, seed=3))
    free = run_all(scheduler)[0, 0]
    stop = int(free.ids[20])
    first = int(np.flatnonzero(free.ids == stop)[0])
    scheduler.submit((0, 1), make_request([1, 2], 60, seed=3, stop_ids=(96, stop)))
    stopped = run_all(scheduler)[0, 1]
    first = min([first, *np.flatnonzero(free.ids == 96).tolist()])
    assert stopped.finish_reason == "stop"
    assert np.array_equal(stopped.ids, free.ids[: first + 1])


def test_the_context_ends_a_completion(models, make_request, run_all):
    scheduler = models("qwen3").scheduler()
    scheduler.submit((0, 0), make_request(np.arange(97).repeat(3)[:250], 100))
    completion = run_all(scheduler)[0, 0]
    assert len(completion.ids) == 6
    assert completion.finish_reason == "length"


def test_an_aborted_request_gives_its_slot_back(models, make_request, run_all):
    scheduler = models("qwen3").scheduler(num_slots=1)
    scheduler.submit((0, 0), make_request([1, 2], 200))
    scheduler.submit((0, 1), make_request([3, 4], 5))
    scheduler.submit((1, 0), make_request([5], 5))
    scheduler.step()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    scheduler.abort((0, 0))
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 2)
    scheduler.abort_client(1)
    assert set(run_all(scheduler)) == {(0, 1)}


def test_requests_wait_where_their_cache_would_not_fit_in_memory(models, make_request, run_all):
    model = models("qwen3")
    scheduler = model.scheduler(memory_bytes=1)
    for index in range(3):
        scheduler.submit((0, index), make_request([1, 2], 5, seed=index))
    scheduler.step()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    assert len(run_all(scheduler)) == 3


def test_a_shared_prompt_is_computed_once(models, make_request, run_all):
    model = models("gemma3")
    scheduler = model.scheduler(num_slots=6)
    prompt = np.arange(40)
    for index in range(8):  # two of them join when others have left
        scheduler.submit((0, index), make_request(prompt, 12 + 3 * index, seed=index))
    done = run_all(scheduler)
    assert scheduler.counters.tokens_prefilled < 80
    assert scheduler.counters.tokens_reused >= 5 * 40 + 2 * 39
    for completion in done.values():
        assert np.abs(completion.logprobs - model.logprobs(prompt, completion)).max() < 1e-4


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_a_turn_that_extends_its_session_computes_only_the_new_tail(models, make_request, run_all, name):
    model = models(name)
    scheduler = model.scheduler()
    prompt = np.arange(40)
    scheduler.submit((0, 0), make_request(prompt, 10, session="a", seed=1))
    first = run_all(scheduler)[0, 0]
    longer = np.concatenate([prompt, first.ids, [7, 8, 9]])
    scheduler.submit((0, 1), make_request(longer, 10, session="a", seed=2))
    second = run_all(scheduler)[0, 1]
    assert scheduler.counters.tokens_reused == 40 + 9  # the last sampled token was never fed
    assert np.abs(second.logprobs - model.logprobs(longer, second)).max() < 1e-4


def test_a_rewritten_history_reuses_only_what_is_equal(models, make_request, run_all):
    model = models("qwen3")
    scheduler = model.scheduler()
    scheduler.submit((0, 0), make_request(np.arange(40), 10, session="a"))
    run_all(scheduler)
    rewritten = np.concatenate([np.arange(20), np.arange(60, 90)])
    scheduler.submit((0, 1), make_request(rewritten, 10, session="a"))
    completion = run_all(scheduler)[0, 1]
    assert scheduler.counters.tokens_reused == 20
    assert np.abs(completion.logprobs - model.logprobs(rewritten, completion)).max() < 1e-4


def change(model, seed=1):
    """New random weights for a model's decoder and its reference; returns what `replace_weights` takes."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.reference.state_dict().items()}
    for alias in ("lm_head.weight",):
        if model.reference.config.tie_word_embeddings:
            state[alias] = state["model.embed_tokens.weight"]

    def load():
        weights = model.loaded.decoder.weights
        for name, tensor in state.items():
            weights.bindings[name].write(tensor)
        weights.refresh()
        return "checksum"

    return state, load


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "qwen2"])
def test_weights_change_between_two_tokens_of_a_request(fresh, make_request, run_all, name, recompute):
    model = fresh(name)
    scheduler = model.scheduler(recompute=recompute)
    prompts = [np.arange(40), np.arange(50, 53)]
    for index, prompt in enumerate(prompts):
        scheduler.submit((0, index), make_request(prompt, 30, seed=index))
    for _ in range(10):
        scheduler.step()
    state, load = change(model)
    new = Version(lineage=1, step=4)
    assert scheduler.replace_weights(new, load) == "checksum"
    done = run_all(scheduler)
    for index, prompt in enumerate(prompts):
        completion = done[0, index]
        assert completion.versions == (VersionRun(version=Version(), start=0, end=10), VersionRun(version=new, start=10, end=30))
        before = model.logprobs(prompt, completion)[:10]
        model.reference.load_state_dict(state)
        after = model.logprobs(prompt, completion)[10:]
        model.reference.load_state_dict(dict(fresh(name).reference.state_dict().items()))
        assert np.abs(completion.logprobs[:10] - before).max() < 1e-4
        difference = np.abs(completion.logprobs[10:] - after).max()
        assert (difference < 1e-4) == recompute  # a kept cache is of neither policy alone


def test_requests_after_a_publish_never_use_what_older_weights_computed(fresh, make_request, run_all):
    model = fresh("qwen3")
    scheduler = model.scheduler()
    prompt = np.arange(40)
    scheduler.submit((0, 0), make_request(prompt, 10, session="a", seed=1))
    first = run_all(scheduler)[0, 0]
    scheduler.submit((0, 1), make_request(prompt, 60, session="b", seed=2))  # in flight over the publish: its cache is mixed
    scheduler.step()
    state, load = change(model)
    scheduler.replace_weights(Version(step=1), load)
    model.reference.load_state_dict(state)
    reused = scheduler.counters.tokens_reused
    longer = np.concatenate([prompt, first.ids])
    scheduler.submit((0, 2), make_request(longer, 20, session="a", seed=3))
    scheduler.submit((0, 3), make_request(prompt, 20, seed=4))  # the same prompt as the one in flight
    done = run_all(scheduler)
    mixed = np.concatenate([prompt, done[0, 1].ids])
    scheduler.submit((0, 4), make_request(mixed, 20, session="b", seed=5))
    done |= run_all(scheduler)
    assert scheduler.counters.tokens_reused == reused
    for number, ids in ((2, longer), (3, prompt), (4, mixed)):
        assert np.abs(done[0, number].logprobs - model.logprobs(ids, done[0, number])).max() < 1e-4
        assert done[0, number].versions == (VersionRun(version=Version(step=1), start=0, end=20),)


def test_two_publishes_without_a_token_between_leave_one_mark(fresh, make_request, run_all):
    model = fresh("qwen3")
    scheduler = model.scheduler()
    scheduler.submit((0, 0), make_request([1, 2, 3], 4))
    scheduler.step()
    for step in (1, 2):
        _, load = change(model, step)
        scheduler.replace_weights(Version(step=step), load)
    completion = run_all(scheduler)[0, 0]
    assert [(run.version.step, run.start, run.end) for run in completion.versions] == [(0, 0, 1), (2, 1, 4)]


def test_logits_that_are_not_finite_fail_the_request_and_leave_nothing_behind(fresh, make_request, run_all):
    model = fresh("qwen3")
    scheduler = model.scheduler(num_slots=1)
    name = "model.layers.0.self_attn.v_proj.weight"
    good = model.loaded.decoder.weights.bindings[name].read().clone()

    def load(tensor):
        model.loaded.decoder.weights.bindings[name].write(tensor)
        return ""

    scheduler.replace_weights(Version(step=1), lambda: load(torch.full_like(good, torch.nan)))
    scheduler.submit((0, 0), make_request(np.arange(60), 4))
    (failed,) = scheduler.step()
    assert "not finite" in failed.result
    scheduler.replace_weights(Version(step=2), lambda: load(good))
    scheduler.submit((0, 1), make_request([1, 2, 3], 4))
    completion = run_all(scheduler)[0, 1]
    assert np.abs(completion.logprobs - model.logprobs(np.array([1, 2, 3]), completion)).max() < 1e-4


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.arange(256) % 97, {}, "leaves no room in the context of 256"),
        ([], {}, "at least one token"),
        ([97], {}, "from 0 to 96"),
        ([-1], {}, "from 0 to 96"),
        ([1], {"temperature": -1.0}, "temperature must be"),
        ([1], {"temperature": float("nan")}, "temperature must be"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"adapter": "x"}, "no adapters"),
        ([1], {"dtype": "bfloat16"}, "computes in float32"),
        ([1], {"max_tokens": 0}, "max_tokens must be at least 1"),
        ([1], {"stop_ids": tuple(range(17))}, "at most 16 ids"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_with_the_reason(models, make_request, ids, options, message):
    scheduler = models("qwen3").scheduler()
    with pytest.raises(Refused, match=message):
        scheduler.submit((0, 0), make_request(ids, **options))
    assert scheduler.num_waiting == 0


def test_greedy_takes_the_likeliest_and_reports_logprobs_at_temperature_1(models, make_request, run_all):
    model = models("qwen3")
    scheduler = model.scheduler()
    prompt = np.array([3, 1, 4])
    scheduler.submit((0, 0), make_request(prompt, 20, temperature=0.0))
    scheduler.submit((0, 1), make_request(prompt, 20, temperature=0.0, seed=5))
    done = run_all(scheduler)
    assert np.array_equal(done[0, 0].ids, done[0, 1].ids)
    assert np.abs(done[0, 0].logprobs - model.logprobs(prompt, done[0, 0])).max() < 1e-4
    ids = torch.from_numpy(np.concatenate([prompt, done[0, 0].ids]).astype(np.int64))
    with torch.no_grad():
        likeliest = model.reference(input_ids=ids[None]).logits[0].argmax(-1)
    assert np.array_equal(likeliest[2:-1].numpy(), done[0, 0].ids)
