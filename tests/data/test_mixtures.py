"""Several datasets in an epoch: each its share, no row again before all others, and nothing kept but the epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.data.mixtures import Mixture, epoch_order, epoch_shares
from agentrl.data.rows import ObjectRows

mixtures = st.lists(st.tuples(st.integers(1, 20), st.floats(0.05, 5)), min_size=1, max_size=4)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 3), st.booleans())
def test_without_weights_an_epoch_has_every_row_once(lengths, epoch, shuffle):
    order = epoch_order(lengths, seed=0, epoch=epoch, shuffle=shuffle)
    assert sorted(order) == list(range(sum(lengths)))
    assert shuffle or list(order) == sorted(order)


@given(mixtures, st.integers(0, 3), st.booleans())
def test_with_weights_each_dataset_has_its_share_and_none_of_its_rows_comes_early(parts, seed, shuffle):
    lengths, weights = [length for length, _ in parts], [weight for _, weight in parts]
    shares = epoch_shares(lengths, weights)
    total = sum(lengths)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) <= 0.5 or share == 1
    drawn = np.concatenate([epoch_order(lengths, weights, seed=seed, epoch=epoch, shuffle=shuffle) for epoch in range(3)])
    for start, length, share in zip(np.cumsum([0, *lengths]), lengths, shares, strict=False):
        counts = Counter(int(row) for row in drawn if start <= row < start + length)
        assert sum(counts.values()) == 3 * share
        assert len(counts) == min(length, 3 * share)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_an_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(epoch_order([30, 5], [1, 1], seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert orders[2, 1] == tuple(epoch_order([30, 5], [1, 1], seed=2, epoch=1))
    assert epoch_order([3], seed=0, epoch=0).dtype == np.int64


def test_datasets_are_spread_over_an_epoch_that_is_not_shuffled():
    order = epoch_order([8, 2], [4, 1], seed=0, epoch=0, shuffle=False)
    assert list(order) == [0, 1, 8, 2, 3, 4, 5, 9, 6, 7]
    assert list(epoch_order([8, 2], [1, 1], seed=0, epoch=1, shuffle=False) >= 8) == [False, True] * 5


def test_a_small_share_is_at_least_a_row():
    assert epoch_shares([10, 1000], [1e-6, 1]) == [1, 1010]
    assert epoch_shares([0, 10], [1, 1]) == [0, 5]


def test_rows_are_held_out_of_all_datasets_alike():
    parts = tuple(ObjectRows([{"n": f"{name}{number}"} for number in range(length)], name) for name, length in (("a", 30), ("b", 10)))
    mixture, held = Mixture(parts=(*parts, ObjectRows([{"n": "a3"}] * 5)), weights=(2.0, 1.0, 1.0)).hold_out(8, seed=0)
    left = [row["n"] for part in mixture.parts for row in part]
    evaluated = [row["n"] for row in held.rows]
    assert len(evaluated) == 8 == len(set(evaluated))
    assert not set(left) & set(evaluated)
    assert sum(mixture.lengths) == len(mixture.rows) == len(left)
    assert set(left) | set(evaluated) == {*(f"a{number}" for number in range(30)), *(f"b{number}" for number in range(10))}
    assert mixture.weights == (2.0, 1.0, 1.0)
    assert len(held.parts) == 3
    assert held.rows.where(0).split(",")[0] in {"a", "b"}


def test_the_rows_of_a_mixture_are_its_datasets_behind_each_other():
    parts = tuple(ObjectRows([{"n": number}], name) for number, name in enumerate("ab"))
    rows = Mixture(parts=parts).rows
    assert [(rows.where(index), rows[index]) for index in range(2)] == [("a, row 1", {"n": 0}), ("b, row 1", {"n": 1})]
    with pytest.raises(IndexError):
        rows[2]
