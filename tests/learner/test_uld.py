"""Distances of distributions over different vocabularies: by hand, against TRL's own code, finite differences and memory."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl_import import trl_module

from agentrl.learner.logprobs import Head
from agentrl.learner.projection import Projection
from agentrl.learner.uld import Matched, Side, by_rank, compare
from agentrl.objectives.needs import Words

OWN, OTHER, WIDTH = 11, 14, 5
OWN_GROUPS, OTHER_GROUPS = [0, 0, 1, 2, 2, 2, 3], [0, 1, 1, 2, 3, 3]
"""Pieces of several tokens on either side."""
MATCHED = Matched(own=torch.tensor([3, 0, 7, 9]), other=torch.tensor([1, 2, 8, 13]))


def side(words: int, groups: list[int], *, seed: int, bias: bool = False, tile_mib: float = 64.0, **head: Any) -> Side:
    draw = torch.Generator().manual_seed(seed)
    tokens = len(groups)
    hidden = torch.randn(tokens + 2, WIDTH, generator=draw, dtype=torch.float64)
    weight = torch.randn(words, WIDTH, generator=draw, dtype=torch.float64)
    given = torch.randn(words, generator=draw, dtype=torch.float64) if bias else None
    return Side(
        projection=Projection(hidden=hidden, weight=weight, bias=given, head=Head(tile_mib=tile_mib, **head)),
        places=torch.arange(tokens) + 1,
        targets=torch.randint(0, words, (tokens,), generator=draw),
        groups=torch.tensor(groups),
    )


def sides(**options: Any) -> tuple[Side, Side]:
    return side(OWN, OWN_GROUPS, seed=0, **options), side(OTHER, OTHER_GROUPS, seed=1, **options)


def dense(one: Side, *, merge: str, temperature: float) -> torch.Tensor:
    """[pieces, words] written out."""
    logits = one.projection.hidden[one.places] @ one.projection.weight.T
    chances = torch.softmax(logits / temperature, 1)
    rows = []
    for piece in one.groups.unique().tolist():
        places = (one.groups == piece).nonzero().squeeze(1).tolist()
        base = places[-1] if merge == "bayesian" else places[0]
        rows.append(chances[base] * math.prod(float(chances[at, one.targets[at]]) for at in places if at != base))
    return torch.stack(rows)


def test_probabilities_are_compared_by_rank_with_zeros_behind_the_shorter() -> None:
    own, other = torch.tensor([[0.7, 0.1, 0.2]]), torch.tensor([[0.25, 0.5, 0.05, 0.2]])
    assert by_rank(own, other).item() == pytest.approx(abs(0.7 - 0.5) + abs(0.2 - 0.25) + abs(0.1 - 0.2) + 0.05)


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
def test_a_piece_of_several_tokens_is_one_distribution_times_the_chances_of_the_others(merge: Any) -> None:
    own, other = sides()
    how = Words(merge=merge, own_temperature=1.3, temperature=0.8)
    found = compare(own, other, 4, how, None)
    expected = by_rank(dense(own, merge=merge, temperature=1.3), dense(other, merge=merge, temperature=0.8))
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert not found.matched.any()


def trl_loss(own: Side, other: Side, how: Words, matched: Matched | None) -> torch.Tensor:
    """What TRL's class gives for one text whose tokens are these, read where they are predicted.

    Its strategy `observed` reads each distribution one place too late: it is given the rows one place later, and so reads the right ones.
    """
    gold = trl_module("trl.experimental.gold.gold_trainer")
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=how.own_temperature,
        uld_teacher_temperature=how.temperature,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy=how.merge,
        uld_use_hybrid_loss=how.hybrid,
        uld_hybrid_matched_weight=how.matched_weight,
        uld_hybrid_unmatched_weight=how.unmatched_weight,
        beta=how.beta,
    )
    loss = gold.ULDLoss(config)
    if matched is not None:
        loss._vocab_mapping = dict(zip(matched.other.tolist(), matched.own.tolist(), strict=True))
        loss._teacher_matched_ids, loss._student_matched_ids = set(matched.other.tolist()), set(matched.own.tolist())
        loss.mapping_tensor = torch.full((OTHER,), -1, dtype=torch.long)
        loss.mapping_tensor[matched.other] = matched.own
    shift = 1 if how.merge == "bayesian" else 0
    given = []
    for one in (own, other):
        logits = one.projection.hidden[one.places] @ one.projection.weight.T
        count, words = logits.shape
        rows = torch.cat([torch.zeros(2 - shift, words, dtype=logits.dtype), logits, torch.zeros(shift, words, dtype=logits.dtype)])[None]
        labels = torch.cat([torch.tensor([-100, -100]), one.targets])[None]
        ends = [place + 1 for place in range(int(one.groups.max()) + 1)]
        offsets = torch.zeros(1, count + 2, 2, dtype=torch.long)
        for at, group in enumerate(one.groups.tolist()):  # the last token of a piece ends where the piece does, the others between
            last = at == count - 1 or int(one.groups[at + 1]) != group
            offsets[0, at + 2] = torch.tensor([0, 100 * ends[group] - (0 if last else 50 - at - (25 if one is own else 0))])
        given.append((rows, labels, labels.clamp(min=0), offsets))
    (a, b, c, d), (e, f, g, h) = given
    return loss(a, e, b, f, c, g, d, h)


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("matched", [None, MATCHED])
@pytest.mark.parametrize("weights", [(None, None), (0.7, 0.2)])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_trls(merge: Any, matched: Matched | None, weights: Any, beta: float) -> None:
    own, other = sides()
    how = Words(merge=merge, hybrid=matched is not None, beta=beta, matched_weight=weights[0], unmatched_weight=weights[1], temperature=0.9)
    leaves = [own.projection.hidden.requires_grad_(), own.projection.weight.requires_grad_()]
    mine = compare(own, other, 4, how, matched).loss.mean()
    theirs = trl_loss(own, other, how, matched)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    for ours, expected in zip(torch.autograd.grad(mine, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("matched", [None, MATCHED])
def test_gradients_are_those_of_finite_differences(matched: Matched | None) -> None:
    own, other = sides(bias=True, softcap=3.0, scale=0.5)
    leaves = (own.projection.hidden, own.projection.weight, own.projection.bias)
    for leaf in leaves:
        leaf.requires_grad_()  # type: ignore[union-attr]
    how = Words(merge="bayesian", hybrid=matched is not None)
    torch.autograd.gradcheck(lambda *_: compare(own, other, 4, how, matched).loss, leaves, eps=1e-6, atol=1e-6)


def test_the_size_of_a_chunk_changes_nothing() -> None:
    whole, small = (compare(*sides(tile_mib=size), 4, Words(hybrid=True), MATCHED) for size in (64.0, 1e-9))
    torch.testing.assert_close(whole.loss, small.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.matched, small.matched, rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.unmatched, small.unmatched, rtol=1e-14, atol=0)


def test_no_piece_at_all_is_a_zero_with_a_graph() -> None:
    own, other = side(OWN, [], seed=0), side(OTHER, [], seed=1)
    own.projection.hidden.requires_grad_()
    found = compare(own, other, 0, Words(), None)
    assert found.loss.shape == (0,)
    assert torch.autograd.grad(found.loss.sum(), own.projection.hidden)[0].abs().sum() == 0
