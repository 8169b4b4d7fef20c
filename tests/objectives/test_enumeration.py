"""Expected gradients by enumeration of every completion and every group on a vocabulary of three tokens, in float64.

The policy is a table: logits of the first token, and of the second given the first. Expectations are exact sums, so no test here
has a statistical tolerance.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from agentrl.objectives import GroupSignals, get, validate

TIGHT = {"rtol": 1e-12, "atol": 1e-13}
FIXED = list(itertools.product(range(3), repeat=2))
"""Nine completions of two tokens."""
RAGGED = [(0,), *itertools.product((1, 2), range(3))]
"""Seven completions of one or two tokens: token 0 ends."""
UNCLIPPED = {"clip_low": 1, "clip_high": 1e9}


def tables(seed):
    """Logits [1 + 3, 3]: row 0 for the first token, row 1 + a for the token after a."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


THETA, MU, REFERENCE = tables(1), tables(1) + 0.4 * tables(2), tables(3)
REWARD = {completion: float(value) for completion, value in zip(FIXED, np.random.default_rng(4).normal(size=9), strict=True)}
REWARD |= {(0,): 0.35, (1,): -1.2, (2,): 0.8}


def token_logprobs(logits, completion):
    rows = logits.log_softmax(-1)
    contexts = [0, *(1 + token for token in completion[:-1])]
    return torch.stack([rows[context, token] for context, token in zip(contexts, completion, strict=True)])


def probability(logits, completion):
    return token_logprobs(logits, completion).sum().exp()


def expected_gradient(name, options, completions, batch_of, reduced, *, sampler, group_size=2, policy=THETA):
    """Gradient of the objective's loss, averaged over all groups weighted by their probability under the sampler."""
    objective, config = get(name), validate({"name": name, **options})
    normalization = objective.normalization(config)
    logits = policy.clone().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(completions, repeat=group_size):
        weight = np.prod([probability(sampler, completion).item() for completion in group])
        with torch.no_grad():
            drawn = [token_logprobs(sampler, completion) for completion in group]
            reference = [token_logprobs(REFERENCE, completion) for completion in group]
        rewards = np.array([REWARD[completion] for completion in group])
        kl = np.array([(a - b).sum().item() for a, b in zip(drawn, reference, strict=True)])
        advantages = objective.advantages([GroupSignals(rewards=rewards, reference_kl=kl)], config)[0]
        batch = batch_of([token_logprobs(logits, completion) for completion in group], drawn, advantages, reference)
        losses = objective.loss(batch, config)
        expected = expected + weight * reduced(losses, [len(completion) for completion in group], normalization, 2)
    return torch.autograd.grad(expected, logits)[0]


def true_gradient(completions, policy=THETA, beta=0.0):
    """Gradient of E[reward] - beta * KL(policy || reference), itself an exact sum."""
    logits = policy.clone().requires_grad_()
    value = torch.zeros((), dtype=torch.float64)
    for completion in completions:
        chance = probability(logits, completion)
        value = value + chance * (REWARD[completion] - beta * (chance / probability(REFERENCE, completion)).log())
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("completions", [FIXED, RAGGED], ids=["fixed", "ragged"])
@pytest.mark.parametrize("group_size", [2, 3])
def test_rloo_on_policy_is_the_policy_gradient(completions, group_size, batch_of, reduced):
    got = expected_gradient("rloo", {"beta": 0}, completions, batch_of, reduced, sampler=THETA, group_size=group_size)
    torch.testing.assert_close(-got, true_gradient(completions), **TIGHT)


@pytest.mark.parametrize("completions", [FIXED, RAGGED], ids=["fixed", "ragged"])
def test_rloo_penalty_in_the_reward_is_the_gradient_of_the_kl(completions, batch_of, reduced):
    got = expected_gradient("rloo", {"beta": 0.3}, completions, batch_of, reduced, sampler=THETA)
    torch.testing.assert_close(-got, true_gradient(completions, beta=0.3), **TIGHT)


@pytest.mark.parametrize("completions", [FIXED, RAGGED], ids=["fixed", "ragged"])
def test_rloo_off_policy_without_clip_is_the_policy_gradient(completions, batch_of, reduced):
    """Drawn by another policy: the ratio of whole completions makes the estimate unbiased for the policy that is trained."""
    got = expected_gradient("rloo", {"beta": 0, **UNCLIPPED}, completions, batch_of, reduced, sampler=MU)
    torch.testing.assert_close(-got, true_gradient(completions), **TIGHT)
    clipped = expected_gradient("rloo", {"beta": 0}, completions, batch_of, reduced, sampler=MU)
    assert (clipped - got).norm() > 0.01 * got.norm()  # MU is far enough away for the clip to matter


@pytest.mark.parametrize("group_size", [2, 3])
def test_grpo_on_policy_is_the_policy_gradient_up_to_its_own_mean(group_size, batch_of, reduced):
    """A member is part of the mean that it is compared with, which shrinks the expectation by (n - 1) / n, and changes no direction.

    `constant` divides by the 2 tokens of the budget.
    """
    options = {"scale_rewards": "none", "normalization": "constant"}
    got = expected_gradient("grpo", options, RAGGED, batch_of, reduced, sampler=THETA, group_size=group_size)
    torch.testing.assert_close(-got, true_gradient(RAGGED) * (group_size - 1) / group_size / 2, **TIGHT)


@pytest.mark.parametrize("normalization", ["sequence_mean", "token_mean", "constant"])
def test_grpo_normalizations_agree_on_equal_lengths(normalization, batch_of, reduced):
    options = {"scale_rewards": "none", "normalization": normalization}
    got = expected_gradient("grpo", options, FIXED, batch_of, reduced, sampler=THETA)
    torch.testing.assert_close(-got, true_gradient(FIXED) / 2 / 2, **TIGHT)


def test_grpo_sequence_mean_is_biased_towards_short_completions(batch_of, reduced):
    """The length bias that Dr.GRPO removes (arXiv:2503.20783, sec. 3.1): each completion's gradient is divided by its own length."""
    options = {"scale_rewards": "none", "normalization": "sequence_mean"}
    got = expected_gradient("grpo", options, RAGGED, batch_of, reduced, sampler=THETA)
    logits = THETA.clone().requires_grad_()
    chances = torch.stack([probability(THETA, completion) for completion in RAGGED])
    rewards = torch.tensor([REWARD[completion] for completion in RAGGED], dtype=torch.float64)
    mean = (chances * rewards).sum()
    lengths = torch.tensor([len(completion) for completion in RAGGED])
    scores = torch.stack([token_logprobs(logits, completion).sum() for completion in RAGGED])
    biased = torch.autograd.grad((chances * (rewards - mean) / lengths * scores).sum(), logits)[0]
    # Two members: A_i = (r_i - r_j) / 2, whose expectation over the sibling is (r_i - mean) / 2.
    torch.testing.assert_close(-got, biased / 2, **TIGHT)
    assert (-got - true_gradient(RAGGED) / 4).norm() > 0.01 * got.norm()


def test_grpo_off_policy_single_tokens_without_clip_is_the_policy_gradient(batch_of, reduced):
    singles = [(0,), (1,), (2,)]
    options = {"scale_rewards": "none", "normalization": "token_mean", **UNCLIPPED}
    got = expected_gradient("grpo", options, singles, batch_of, reduced, sampler=MU)
    torch.testing.assert_close(-got, true_gradient(singles) / 2, **TIGHT)


def test_grpo_off_policy_without_clip_is_the_token_level_surrogate(batch_of, reduced):
    """Ratios of single tokens correct each token's own draw and leave the sampler's prefixes: the gradient written out in numpy.

    sum over y of mu(y) * reward(y) * sum over t of pi(t | prefix) / mu(t | prefix) * d log pi(t | prefix), times (n - 1) / n.
    """
    options = {"scale_rewards": "none", "normalization": "constant", **UNCLIPPED}
    got = expected_gradient("grpo", options, RAGGED, batch_of, reduced, sampler=MU)
    pi, mu = THETA.softmax(-1).numpy(), MU.softmax(-1).numpy()
    surrogate = np.zeros((4, 3))
    for completion in RAGGED:
        steps = list(zip([0, *(1 + token for token in completion[:-1])], completion, strict=True))
        chance = np.prod([mu[step] for step in steps])
        for context, token in steps:
            slope = np.eye(3)[token] - pi[context]  # d log softmax / d logits
            surrogate[context] += chance * REWARD[completion] * pi[context, token] / mu[context, token] * slope
    torch.testing.assert_close(-got, torch.from_numpy(surrogate) / 2 / 2, **TIGHT)
    # Reading the policy's own log-probs as the sampler's would drop the ratios.
    assert (-got - true_gradient(RAGGED) / 4).norm() > 0.01 * got.norm()


def visits(logits):
    """How often a rollout reaches each of the four contexts."""
    first = logits.softmax(-1)[0]
    return torch.stack([torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), first[1], first[2]])


def kl_part(options, sampler, batch_of, reduced):
    """What beta = 0.7 adds to GRPO's expected gradient, `constant` undone."""
    common = {"scale_rewards": "none", "normalization": "constant"}
    with_kl = expected_gradient("grpo", {**common, "beta": 0.7, **options}, RAGGED, batch_of, reduced, sampler=sampler)
    return (with_kl - expected_gradient("grpo", common, RAGGED, batch_of, reduced, sampler=sampler)) * 2 / 0.7


@pytest.mark.parametrize("sampler", [THETA, MU], ids=["on-policy", "off-policy"])
def test_grpo_kl_term_is_the_gradient_of_the_kl(sampler, batch_of, reduced):
    """d KL(policy || reference) / d logits = policy * (log(policy / reference) - KL), at the prefixes that were sampled."""
    log_ratio = THETA.log_softmax(-1) - REFERENCE.log_softmax(-1)
    kl = (THETA.softmax(-1) * log_ratio).sum(-1, keepdim=True)
    expected = visits(sampler)[:, None] * THETA.softmax(-1) * (log_ratio - kl)
    torch.testing.assert_close(kl_part({}, sampler, batch_of, reduced), expected, rtol=1e-10, atol=1e-12)


def test_grpo_plain_k3_is_the_gradient_of_the_other_kl(batch_of, reduced):
    """The trap that `kl_correction` avoids: d KL(reference || policy) / d logits = policy - reference."""
    expected = visits(THETA)[:, None] * (THETA.softmax(-1) - REFERENCE.softmax(-1))
    torch.testing.assert_close(kl_part({"kl_correction": False}, THETA, batch_of, reduced), expected, rtol=1e-10, atol=1e-12)
