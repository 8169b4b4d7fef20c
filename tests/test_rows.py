from __future__ import annotations

import numpy as np
from fakes import make_span, make_turn
from hypothesis import given
from hypothesis import strategies as st

from agentrl.records import Rollout, Score, Source, Task
from agentrl.rows import rows_of


@st.composite
def trees(draw):
    """Rollouts of up to 8 turns, each continuing or forking off an earlier one."""
    count = draw(st.integers(1, 8))
    turns = []
    for index in range(count):
        parent = -1 if index == 0 else draw(st.integers(-1, index - 1))
        source = Source.PROMPT if parent < 0 else Source.ENVIRONMENT
        turns.append(make_turn(make_span(draw(st.integers(0, 3)), draw(st.integers(0, 4)), seed=index, step=index, source=source), parent))
    return Rollout(task=Task.from_row("t", {}), member=0, turns=tuple(turns), messages=(), ending="complete", score=Score(value=0.0))


@given(trees())
def test_every_sampled_token_is_trained_exactly_once(rollout):
    rows = rows_of(rollout)
    trained = sorted(
        (int(turn), int(token)) for row in rows for turn, token in zip(row.turn[row.trained], row.ids[row.trained], strict=True)
    )
    sampled = sorted((index, int(token)) for index, turn in enumerate(rollout.turns) for token in turn.span.ids[turn.span.sampled])
    assert trained == sampled
    for row in rows:
        assert len({len(row.ids), len(row.trained), len(row.sampler_logprobs), len(row.version_steps), len(row.turn)}) == 1
        assert not np.isnan(row.sampler_logprobs[row.trained]).any()
        assert (row.version_steps[row.trained] == row.turn[row.trained]).all(), "the version stays with its token"


def test_a_row_is_the_path_from_root_to_leaf():
    turns = (make_turn(make_span(2, 1, seed=1)), make_turn(make_span(1, 1, seed=2), 0), make_turn(make_span(1, 1, seed=3), 0))
    rollout = Rollout(task=Task.from_row("t", {}), member=0, turns=turns, messages=(), ending="complete", score=Score(value=0.0))
    first, second = rows_of(rollout)
    assert first.ids.tolist() == [*turns[0].span.ids, *turns[1].span.ids]
    assert second.ids.tolist() == [*turns[0].span.ids, *turns[2].span.ids]
    assert first.trained.tolist() == [False, False, True, False, True]
    assert second.trained.tolist() == [False, False, False, False, True], "the shared turn was trained in the first row"
