"""Weights change in one of an engine's two models, and the other does not notice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from mixture_truth import Pair

from agentrl.records import Version, VersionRun

PROMPT = np.arange(40)


@pytest.fixture
def pair(fresh, models):
    """A policy that may be changed and a reference, over one architecture, in one scheduler."""
    return lambda name="qwen3", **options: Pair(fresh(name), models(name, 1), **options)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_publish_changes_the_policys_half_alone(pair, make_request, run_all, recompute):
    """The head alone changes: what is cached stays right, so that a kept cache is as exact as one that is computed again."""
    both = pair("qwen2", recompute=recompute)
    shares = [0.0, 0.3, 1.0]
    for index, share in enumerate(shares):
        both.scheduler.submit((0, index), make_request(PROMPT, 30, seed=index, reference_share=share))
    for _ in range(10):
        both.scheduler.step()
    before = {name: tensor.clone() for name, tensor in both.policy.reference.state_dict().items()}
    both.publish(4, ["lm_head.weight"])
    after = {name: tensor.clone() for name, tensor in both.policy.reference.state_dict().items()}
    done = run_all(both.scheduler)
    for state, part in ((before, slice(0, 10)), (after, slice(10, 30))):
        both.policy.reference.load_state_dict(state)
        for index, share in enumerate(shares):
            completion = done[0, index]
            head = dataclasses.replace(completion, ids=completion.ids[: part.start], logprobs=completion.logprobs[: part.start])
            rest = dataclasses.replace(completion, ids=completion.ids[part], logprobs=completion.logprobs[part])
            assert both.error(np.concatenate([PROMPT, head.ids]), rest, share) < 1e-5
    mixed_runs = (VersionRun(version=Version(), start=0, end=10), VersionRun(version=Version(step=4), start=10, end=30))
    assert [done[0, index].versions for index in range(3)] == [mixed_runs, mixed_runs, (VersionRun(version=Version(), start=0, end=30),)]


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_recomputing_makes_a_request_in_flight_exact_under_all_new_weights(pair, make_request, run_all, name):
    both = pair(name, recompute=True)
    for index, share in enumerate((0.3, 1.0, 0.8)):
        both.scheduler.submit((0, index), make_request(PROMPT[: 30 + index], 30, seed=index, reference_share=share))
    for _ in range(10):
        both.scheduler.step()
    policy, reference = both.computed
    both.publish(1)
    assert both.computed == (policy + 30 + 9 + 32 + 9, reference)
    done = run_all(both.scheduler)
    for index, share in enumerate((0.3, 1.0, 0.8)):
        completion = done[0, index]
        rest = dataclasses.replace(completion, ids=completion.ids[10:], logprobs=completion.logprobs[10:])
        assert both.error(np.concatenate([PROMPT[: 30 + index], completion.ids[:10]]), rest, share) < 1e-5


def test_the_reference_alone_never_notices_a_publish(pair, make_request, run_all):
    results = []
    for publishes in (False, True):
        both = pair(recompute=True)
        both.scheduler.submit((0, 0), make_request(PROMPT, 30, reference_share=1.0))
        for step in range(5):
            both.scheduler.step()
            if publishes:
                both.publish(step + 1)
        results.append(run_all(both.scheduler)[0, 0])
        assert both.computed[0] == 0
    assert results[0].ids.tobytes() == results[1].ids.tobytes()
    assert results[0].logprobs.tobytes() == results[1].logprobs.tobytes()
    assert results[0].versions == results[1].versions == (VersionRun(version=Version(), start=0, end=30),)


def test_after_a_publish_a_session_goes_on_with_the_references_cache_and_without_the_policys(pair, make_request, run_all):
    both = pair()
    both.scheduler.submit((0, 0), make_request(PROMPT, 10, session="a", seed=1, reference_share=0.3))
    first = run_all(both.scheduler)[0, 0]
    both.scheduler.submit((0, 1), make_request(PROMPT, 60, session="b", seed=2, reference_share=0.8))  # in flight over the publish
    both.scheduler.step()
    both.publish(1)
    reused = both.scheduler.counters.tokens_reused
    longer = np.concatenate([PROMPT, first.ids])
    both.scheduler.submit((0, 2), make_request(longer, 20, session="a", seed=3, reference_share=0.3))
    both.scheduler.submit((0, 3), make_request(PROMPT, 20, seed=4, reference_share=0.5))  # the same prompt as the one in flight
    done = run_all(both.scheduler)
    long = np.concatenate([PROMPT, done[0, 1].ids])
    both.scheduler.submit((0, 4), make_request(long, 20, session="b", seed=5, reference_share=0.8))
    done |= run_all(both.scheduler)
    assert both.scheduler.counters.tokens_reused == reused + 49 + 39 + 99
    for number, ids, share in ((2, longer, 0.3), (3, PROMPT, 0.5), (4, long, 0.8)):
        assert both.error(ids, done[0, number], share) < 1e-5


@pytest.mark.parametrize("recompute", [False, True])
def test_a_cache_of_two_versions_is_not_kept_for_the_next_turn_and_spoils_no_later_one(pair, make_request, run_all, recompute):
    both = pair(num_slots=1, recompute=recompute)
    both.scheduler.submit((0, 0), make_request(PROMPT, 10, session="a", reference_share=0.5))
    both.scheduler.step()
    both.publish(1)
    ids, reused = PROMPT, []
    for turn in range(1, 4):
        completion = run_all(both.scheduler)[0, turn - 1]
        ids = np.concatenate([ids, completion.ids])
        before = both.scheduler.counters.tokens_reused
        both.scheduler.submit((0, turn), make_request(ids, 10, session="a", reference_share=0.5))
        both.scheduler.step()
        reused.append(both.scheduler.counters.tokens_reused - before)
    assert reused == [2 * 49 if recompute else 49, 2 * 59, 2 * 69]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_token_of_a_storm_is_the_mixtures_of_the_version_that_it_says(pair, make_request, seed):
    """Shares, temperatures, sessions, shared prompts, aborts and publishes at random, in few slots and little memory."""
    both = pair(num_slots=5, recompute=True, memory_bytes=1 << 20)
    states = {0: {name: tensor.clone() for name, tensor in both.policy.reference.state_dict().items()}}
    random = np.random.default_rng(seed)
    asked, done, last = {}, {}, {}
    for tick in range(260):
        if tick < 200 and random.random() < 0.3:
            session = str(random.integers(0, 3)) if random.random() < 0.6 else ""
            length = int(random.integers(1, 60))
            prompt = np.arange(length) if random.random() < 0.5 else random.integers(0, 97, length)
            if session in last and random.random() < 0.6:
                prompt = np.concatenate([last[session], prompt[:3]])[:180]
            share, temperature = float(random.choice([0.0, 0.3, 0.7, 1.0])), float(random.choice([0.7, 1.0]))
            asked[len(asked)] = (prompt, share, temperature, session)
            options = {"seed": tick, "session": session, "reference_share": share, "temperature": temperature}
            both.scheduler.submit((0, len(asked) - 1), make_request(prompt, int(random.integers(1, 50)), **options))
        if asked and random.random() < 0.05:
            both.scheduler.abort((0, int(random.integers(0, len(asked)))))
        if random.random() < 0.03:
            both.publish(tick + 1)
            states[tick + 1] = {name: tensor.clone() for name, tensor in both.policy.reference.state_dict().items()}
        for finished in both.scheduler.step():
            number, done[finished.key[1]] = finished.key[1], finished.result
            last[asked[number][3]] = np.concatenate([asked[number][0], finished.result.ids])
    assert len(done) > 30
    assert len(states) > 3
    for number, completion in done.items():
        prompt, share, temperature, _ = asked[number]
        for run in completion.versions:
            both.policy.reference.load_state_dict(states[run.version.step])
            part = dataclasses.replace(completion, ids=completion.ids[: run.end], logprobs=completion.logprobs[: run.end])
            head = np.concatenate([prompt, part.ids[: run.start]])
            rest = dataclasses.replace(part, ids=part.ids[run.start :], logprobs=part.logprobs[run.start :])
            assert both.error(head, rest, share, temperature) < 5e-5


def test_a_policy_that_diverged_fails_its_mixtures_and_spares_the_reference(pair, make_request, run_all):
    both = pair(num_slots=3)
    name = "model.layers.0.self_attn.v_proj.weight"
    binding = both.policy.loaded.decoder.weights.bindings[name]
    good = binding.read().clone()
    both.scheduler.replace_weights(Version(step=1), lambda: str(binding.write(torch.full_like(good, torch.nan))))
    for index, share in enumerate((0.0, 0.5, 1.0)):
        both.scheduler.submit((0, index), make_request(PROMPT, 4, reference_share=share))
    failed = {finished.key[1]: finished.result for finished in both.scheduler.step()}
    assert set(failed) == {0, 1}
    assert all("version 1 are not finite: the policy has diverged" in message for message in failed.values())
    assert both.error(PROMPT, run_all(both.scheduler)[0, 2], 1.0) < 1e-5
    both.scheduler.replace_weights(Version(step=2), lambda: str(binding.write(good)))
    for index, share in enumerate((0.5, 0.0, 0.5)):  # in the same rows
        both.scheduler.submit((0, index), make_request([1, 2, 3], 40, seed=index, reference_share=share))
    done = run_all(both.scheduler)
    for index, share in enumerate((0.5, 0.0, 0.5)):
        assert both.error(np.array([1, 2, 3]), done[0, index], share) < 1e-5
