"""Exact statements about expected gradients: what each objective's is equal to, worked out from what it is meant to train."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import report_enumeration as world
from report_cells import gap
from report_ours import Scores, loss_of, prepare, slopes_of

if TYPE_CHECKING:
    from collections.abc import Callable

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is equal, in a few words, and its relative error."""

    says: str
    error: Callable[[], float]


def gradient(where: world.World, options: Options, completions: tuple[world.Completion, ...] = world.RAGGED) -> np.ndarray:
    return world.expected(where, options, completions=completions)[0].logits


def policy_gradient(options: Options, factor: float, *, beta: float = 0.0, where: world.World = world.ON_POLICY, says: str = "") -> Claim:
    """Minus the factor times the gradient of E[R] - beta KL, over completions of one or two tokens."""

    def error() -> float:
        return gap(-gradient(where, options), factor * world.policy_gradient(where, beta=beta))

    return Claim(says=says or "dJ on policy", error=error)


def single_tokens(options: Options, factor: float, *, where: world.World = world.OFF_POLICY) -> Claim:
    """The same of completions of one token, drawn by another policy: one token's ratio is all that an unbiased weight needs."""

    def error() -> float:
        return gap(-gradient(where, options, world.SINGLES), factor * world.policy_gradient(where, world.SINGLES))

    return Claim(says="1 token off policy", error=error)


def unbiased(options: Options, factor: float = 1.0, where: world.World = world.OFF_POLICY) -> Claim:
    return policy_gradient(options, factor, where=where, says="off policy")


def both(name: str, reduction: str = "constant", *, where: world.World = world.OFF_POLICY, **loose: Any) -> tuple[Claim, ...]:
    """On policy, and off policy on single tokens with the options that turn clips and masks off.

    Members are part of the group's mean, which halves the gradient in groups of two.
    """
    options: Options = {"name": name, "scale_rewards": "none", "normalization": reduction}
    factor = 0.5 * (0.5 if reduction == "constant" else 1.0)
    return policy_gradient(options, factor), single_tokens(options | loose, factor, where=where)


def kl_gradient(options: Options, where: world.World, *, of_reference: bool = False, says: str) -> Claim:
    """What beta = 0.7 adds to a gradient: that of KL(policy || reference) at the sampled prefixes, or of KL(reference || policy)."""
    common = {"name": "grpo", "scale_rewards": "none", "normalization": "constant"}

    def error() -> float:
        added = gradient(where, {**common, "beta": 0.7, **options}) - gradient(where, common)
        policy, reference = np.exp(world.logs(where.now)), np.exp(world.logs(where.reference))
        log_ratio = world.logs(where.now) - world.logs(where.reference)
        one = policy - reference if of_reference else policy * (log_ratio - (policy * log_ratio).sum(1, keepdims=True))
        return gap(added * world.LONGEST / 0.7, world.visits(where.sampler)[:, None] * one)

    return Claim(says=says, error=error)


def entropy_gradient(coefficient: float) -> Claim:
    """What the bonus adds: minus the coefficient times the gradient of the entropy at the sampled prefixes."""
    common = {"name": "grpo", "scale_rewards": "none", "normalization": "constant"}

    def error() -> float:
        where = world.OFF_POLICY
        added = gradient(where, {**common, "entropy_coef": coefficient}) - gradient(where, common)
        policy = np.exp(world.logs(where.now))
        one = policy * (world.logs(where.now) + world.entropies(where.now)[:, None])
        return gap(added * world.LONGEST, coefficient * world.visits(where.sampler)[:, None] * one)

    return Claim(says="d entropy off policy", error=error)


def nash_gradient(beta: float) -> tuple[Claim, ...]:
    """The sum over all completions of policy (P(y beats the mixture) - 1/2 - beta log(policy / reference)) grad log policy."""

    def error(where: world.World, options: Options) -> float:
        policy, rival = np.exp(world.logs(where.now)), world.mixture(where, 0.25)
        found = np.zeros((4, 3))
        for one in world.RAGGED:
            rows, tokens = world.contexts(one), list(one)
            wins = sum(world.chance(rival, other) / (1 + math.exp(world.REWARD[other] - world.REWARD[one])) for other in world.RAGGED)
            drift = (world.logs(where.now) - world.logs(where.reference))[rows, tokens].sum()
            for row, token in zip(rows, tokens, strict=True):
                found[row] += world.chance(where.now, one) * (wins - 0.5 - beta * drift) * (np.eye(3)[token] - policy[row])
        return gap(-gradient(where, {"name": "nash_md", "beta": beta, **options}), found)

    return (
        Claim(says="sum over all pairs on policy", error=lambda: error(world.ON_POLICY, {})),
        Claim(says="off policy", error=lambda: error(world.OFF_POLICY, {"ratio_max": 1e9})),
    )


def optimum(beta: float = 0.5) -> Claim:
    """At policy = reference exp(R / beta) / Z, with beta1 = beta2 and V* exact, A*-PO has neither loss nor gradient."""

    def error() -> float:
        rewards = np.array([world.REWARD[one] for one in world.SINGLES])
        best = rewards / beta
        where = dataclasses.replace(world.ON_POLICY, reference=np.zeros((4, 3)), now=np.tile(best, (4, 1)), sampler=np.tile(best, (4, 1)))
        options = {"name": "a2po", "beta1": beta, "beta2": beta}
        # A uniform reference that has drawn each completion once says V* exactly.
        step = world.plays_of(where, options, [[*world.SINGLES, *world.SINGLES]])
        scores = Scores.of(step)
        away = Scores.of(world.plays_of(dataclasses.replace(where, now=where.now + world.table(9, 0.1)), options, [[*world.SINGLES] * 2]))
        prepared = prepare(options, step)
        found = np.concatenate(slopes_of(loss_of(prepared, scores), scores.now))
        scale = np.concatenate(slopes_of(loss_of(prepared, away), away.now))
        return float(np.linalg.norm(found) / np.linalg.norm(scale))

    return Claim(says="0 at reference exp(R / beta) / Z", error=error)
