"""The mixture of policy and reference is sampled as it is defined, and scored as it is sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mixture_truth import error_of, mixture_of

from agentrl.engines.mixture import Rows, mixed


def rows(*slots, vocabulary=5, seed=0):
    torch.manual_seed(seed)
    return Rows(logits=torch.randn(len(slots), vocabulary), slots=np.array(slots))


def test_each_slot_gets_the_mean_of_its_own_rows_by_its_own_share():
    policy, reference = rows(3, 0, 4, 1), rows(1, 2, 3, seed=1)
    ours, theirs = policy.logits.clone(), reference.logits.clone()
    shares = np.array([0.0, 0.25, 1.0, 0.6, 0.0])
    result = mixed(policy, reference, shares)
    assert result.slots.tolist() == [3, 0, 4, 1, 2]
    expected = [0.4 * ours[0] + 0.6 * theirs[2], ours[1], ours[2], 0.75 * ours[3] + 0.25 * theirs[0], theirs[1]]
    assert torch.allclose(result.logits, torch.stack(expected), atol=1e-6)
    assert result.logits[1:3].equal(ours[1:3])
    assert result.logits[4].equal(theirs[1])


def test_one_side_alone_is_passed_through_untouched():
    for one in (rows(1, 0), None), (None, rows(1, 0)):
        assert mixed(*one, np.zeros(2)) in one


def test_a_policy_that_is_not_finite_spoils_its_mixtures_and_nothing_else():
    policy, reference = rows(0, 1), rows(2, 1)
    policy.logits[1] = torch.nan
    result = mixed(policy, reference, np.array([0.0, 0.5, 1.0]))
    assert result.logits.isfinite().all(-1).tolist() == [True, False, True]


def test_what_either_model_rules_out_the_mixture_rules_out():
    policy, reference = rows(0), rows(0, seed=1)
    policy.logits[0, :2], reference.logits[0, 1:3] = -torch.inf, -torch.inf
    result = mixed(policy, reference, np.array([0.3]))
    assert result.logits[0].isneginf().tolist() == [True, True, True, False, False]
    assert not result.logits.isnan().any()


@pytest.mark.parametrize(("policy", "reference"), [("qwen3", "qwen3"), ("gemma3", "gemma3"), ("gemma2", "gemma2"), ("llama", "gpt2")])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_logprobs_are_those_of_the_mixture_by_transformers(models, make_request, run_all, policy, reference, share, temperature):
    ours, theirs = models(policy), models(reference, 1)
    scheduler = ours.scheduler(reference=theirs.loaded)
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 97, size) for size in (1, 5, 5, 17, 40, 70)]
    for index, prompt in enumerate(prompts):
        scheduler.submit((0, index), make_request(prompt, 40, seed=index, temperature=temperature, reference_share=share))
    done = run_all(scheduler)
    for index, prompt in enumerate(prompts):
        assert error_of(done[0, index], prompt, ours.reference, theirs.reference, share, temperature) < 1e-5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_tokens_are_drawn_as_often_as_the_mixture_says(models, make_request, run_all, share):
    """Each draw inverts the cumulative mixture at its request's own random number; so the frequencies pass a chi-square test."""
    ours, theirs = models("qwen3"), models("qwen3", 1)
    scheduler = ours.scheduler(reference=theirs.loaded, num_slots=256)
    prompt, count = np.array([3, 1, 4]), 4000
    for seed in range(count):
        scheduler.submit((0, seed), make_request(prompt, 1, seed=seed, temperature=0.7, reference_share=share))
    done = run_all(scheduler)
    ids = np.array([done[0, seed].ids[0] for seed in range(count)])
    shares = np.exp(mixture_of(ours.reference, theirs.reference, prompt, share, 0.7)[-1])
    uniforms = np.array([np.random.Generator(np.random.Philox(seed)).random() for seed in range(count)])
    heights = np.concatenate([[0.0], np.cumsum(shares)])
    assert (heights[ids] - 1e-5 <= uniforms).all()
    assert (uniforms <= heights[ids + 1] + 1e-5).all()
    expected = count * shares
    common = expected >= 5
    counts = np.bincount(ids, minlength=97)
    cells = [*(((counts - expected) ** 2 / expected)[common])]
    rest, rest_expected = counts[~common].sum(), expected[~common].sum()
    cells.append((rest - rest_expected) ** 2 / rest_expected)
    freedom = len(cells) - 1
    assert sum(cells) < freedom + 4 * np.sqrt(2 * freedom)


def test_greedy_takes_the_likeliest_of_the_mixture_and_truncation_its_top(models, make_request, run_all):
    ours, theirs = models("qwen3"), models("qwen3", 1)
    scheduler = ours.scheduler(reference=theirs.loaded)
    prompt = np.array([3, 1, 4])
    scheduler.submit((0, 0), make_request(prompt, 20, temperature=0.0, reference_share=0.5))
    scheduler.submit((0, 1), make_request(prompt, 20, seed=7, top_k=3, reference_share=0.5))
    done = run_all(scheduler)
    for number, most in ((0, 1), (1, 3)):
        scores = mixture_of(ours.reference, theirs.reference, np.concatenate([prompt, done[0, number].ids]), 0.5)[2:-1]
        place = (scores > scores[np.arange(20), done[0, number].ids][:, None] + 1e-6).sum(-1)
        assert place.max() < most
        assert error_of(done[0, number], prompt, ours.reference, theirs.reference, 0.5) < 1e-4
