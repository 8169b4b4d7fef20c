from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.engines.kv import KVCache, LayerShape, pool_capacities
from agentrl.engines.prefixes import PrefixStore, common_length

SHAPES = [LayerShape(heads=2, dim=4), LayerShape(heads=1, dim=6)]


def make(slots=6, context=300):
    return KVCache(SHAPES, num_slots=slots, context_length=context, dtype=torch.float32, device=torch.device("cpu"))


def fill(cache, slot, length):
    """Give a slot's cache contents that name it."""
    cache.write(slot, [torch.full((2, shape.heads, length, shape.dim), float(slot)) for shape in SHAPES], length)


def holds(cache, slot, length, value):
    return all((layer == value).all() for layer in cache.read(slot, length))


@pytest.mark.parametrize("context", [1, 31, 32, 33, 96, 129, 500, 4096])
def test_capacities_reach_the_context_and_waste_little(context):
    capacities = pool_capacities(context)
    assert capacities == sorted(set(capacities))
    assert context <= capacities[-1] < context + 32
    assert all(later <= max(2 * earlier, earlier + 32) for earlier, later in itertools.pairwise(capacities))


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "grow"]), st.integers(0, 5), st.integers(1, 280)), max_size=60))
def test_whatever_joins_grows_and_leaves_each_slot_keeps_its_own_cache(actions):
    cache = make()
    lengths = np.zeros(6, dtype=np.int64)
    for action, slot, amount in actions:
        is_open = cache.pool[slot] >= 0
        if action == "open" and not is_open:
            cache.open(slot, amount)
            lengths[slot] = amount
            fill(cache, slot, amount)
        elif action == "close" and is_open:
            cache.close([slot], lengths)
        elif action == "grow" and is_open:
            capacity = cache.pools[cache.pool[slot]].capacity
            fill(cache, slot, capacity)
            lengths[slot] = capacity
            if capacity < cache.pools[-1].capacity:
                cache.make_room(lengths)
                assert cache.pools[cache.pool[slot]].capacity > capacity
        for other in np.flatnonzero(cache.pool >= 0):
            assert cache.pools[cache.pool[other]].slots[cache.row[other]] == other
            assert holds(cache, other, int(lengths[other]), float(other))
        assert sum(len(pool.slots) for pool in cache.pools) == (cache.pool >= 0).sum()


def test_copies_reach_slots_in_other_pools():
    cache = make()
    cache.open(0, 40)
    fill(cache, 0, 40)
    cache.open(1, 40)
    cache.open(2, 200)
    cache.copy(0, [1, 2], 30)
    assert holds(cache, 1, 30, 0.0)
    assert holds(cache, 2, 30, 0.0)


def test_empty_pools_give_their_memory_back():
    cache = make()
    cache.open(0, 10)
    cache.open(1, 200)
    lengths = np.full(6, 5)
    before = cache.allocated_bytes()
    cache.close([1], lengths)
    assert cache.allocated_bytes() == before
    cache.release_empty()
    assert 0 < cache.allocated_bytes() < before
    assert cache.token_bytes == (2 * 2 * 4 + 2 * 1 * 6) * 4


def test_a_prefix_store_forgets_the_least_recently_used_and_what_does_not_fit():
    store = PrefixStore(100)
    for session in "abc":
        store.put(session, np.arange(4), 10, list)
    assert len(store) == 2
    assert store.take("a", np.arange(4)) is None
    taken = store.take("b", np.array([0, 1, 7]))
    assert taken is not None
    assert taken[1] == 2
    store.put("large", np.arange(11), 10, list)
    assert store.take("large", np.arange(11)) is None
    store.clear()
    assert store.take("c", np.arange(4)) is None


def test_common_length():
    assert common_length(np.array([1, 2, 3]), np.array([1, 2, 3, 4])) == 3
    assert common_length(np.array([1, 2, 3]), np.array([1, 9, 3])) == 1
    assert common_length(np.array([]), np.array([1])) == 0
