from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.learner.packing import micro_batches, pack
from agentrl.learner.samples import Sample

CPU = torch.device("cpu")


def sample(group: int, *rows: list[int]) -> Sample:
    """A sample that trains everything after the first token of each row."""
    arrays = [np.array(row, dtype=np.int32) for row in rows]
    return Sample(
        group=group,
        rows=tuple(row[:-1] for row in arrays),
        sources=tuple(np.arange(len(row) - 1) for row in arrays),
        targets=np.concatenate([row[1:] for row in arrays]).astype(np.int64),
        sampler_logprobs=np.zeros(sum(len(row) - 1 for row in arrays), dtype=np.float32),
        masked=False,
    )


# Few distinct tokens, so that common starts of all lengths turn up.
row_lists = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=3)
group_lists = st.lists(st.lists(row_lists, min_size=1, max_size=4), min_size=1, max_size=5)


def samples_of(groups: list[list[list[list[int]]]]) -> list[Sample]:
    return [sample(index, *rows) for index, members in enumerate(groups) for rows in members]


@settings(deadline=None, derandomize=True)
@given(groups=group_lists)
def test_a_pack_holds_every_row_behind_its_own_prefix(groups: list[list[list[list[int]]]]) -> None:
    samples = samples_of(groups)
    packed = pack(samples, CPU)
    ids, positions = packed.ids.numpy(), packed.positions.numpy()
    segments = slots_of(packed.segments.gather, packed.segments.calls, len(ids))
    inputs = [row for one in samples for row in one.rows]
    longest_first = sorted(inputs, key=len, reverse=True)
    found = [ids[segment][: len(row)].tolist() for segment, row in zip(segments, longest_first, strict=True)]
    assert sorted(found) == sorted(row.tolist() for row in inputs)
    for segment in segments:
        whole = positions[segment]
        assert (whole == np.minimum(np.arange(len(whole)), whole.max())).all()
    # The token before each target, and where it stands, are those of the sample's rows.
    before = [int(token) for one in samples for row in one.rows for token in row]
    assert ids[packed.sources.numpy()].tolist() == before
    assert packed.targets.tolist() == [int(token) for one in samples for token in one.targets]


def slots_of(gather: torch.Tensor | None, calls: tuple[tuple[int, int], ...], tokens: int) -> list[np.ndarray]:
    slots = np.arange(tokens) if gather is None else gather.numpy()
    result, start = [], 0
    for count, length in calls:
        for _ in range(count):
            result.append(slots[start : start + length])
            start += length
    return result


@settings(deadline=None, derandomize=True)
@given(groups=group_lists, max_tokens=st.integers(1, 60), ranks=st.integers(1, 3))
def test_micro_batches_hold_each_sample_once_within_the_budget(groups: list[list[list[list[int]]]], max_tokens: int, ranks: int) -> None:
    samples = samples_of(groups)
    batches = micro_batches(samples, max_tokens=max_tokens, multiple_of=ranks)
    assert [place for batch in batches for place in batch] == list(range(len(samples)))
    for batch in batches:
        size = len(pack([samples[place] for place in batch], CPU).ids)
        assert size <= max_tokens or len(batch) == 1


def test_a_common_prompt_is_packed_once_in_its_group_only() -> None:
    members = [[1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 6, 9], [1, 2, 3, 4, 5, 7, 9]]
    together = pack([sample(0, row) for row in members], CPU)
    assert len(together.ids) == 4 + 1 + 1 + 1  # 1 2 3 4, then 5, then 6, then 7 after the first 5
    apart = pack([sample(index, row) for index, row in enumerate(members)], CPU)
    assert len(apart.ids) == 5 + 5 + 6


def test_micro_batches_are_even_and_fill_the_ranks() -> None:
    samples = [sample(index, [0] * 11) for index in range(8)]  # 10 inputs each
    sizes = [len(batch) for batch in micro_batches(samples, max_tokens=35, multiple_of=2)]
    assert sizes == [2, 2, 2, 2]
    assert [len(batch) for batch in micro_batches(samples, max_tokens=1000, multiple_of=2)] == [4, 4]
    assert [len(batch) for batch in micro_batches(samples[:1], max_tokens=1000, multiple_of=2)] == [1]


def test_a_split_group_pays_for_its_prompt_in_each_micro_batch() -> None:
    samples = [sample(0, [7] * 20 + [member, 8, 9]) for member in range(4)]  # 20 shared inputs, 2 of their own
    assert len(micro_batches(samples, max_tokens=28, multiple_of=1)) == 1
    halves = micro_batches(samples, max_tokens=27, multiple_of=1)
    assert [len(batch) for batch in halves] == [2, 2]
