import pytest

from agentrl.envs.adapters.seeds import MOST, Seeds
from agentrl.errors import ConfigError


def seeds_of(rows):
    return [row["seed"] for row in rows]


def test_no_seed_is_in_both_splits_or_under_two_shifts():
    drawn = [seeds_of(Seeds(size=50, eval_size=20, shift=shift).of(split)[:]) for shift in (0, 1) for split in ("train", "eval")]
    assert [len(one) for one in drawn] == [50, 20, 50, 20]
    assert len(set().union(*drawn)) == 140
    assert max(max(one) for one in drawn) < 2**31


def test_rows_are_lazy_and_seats_take_turns():
    rows = Seeds(size=MOST, eval_size=0, seats=3).of("train")
    assert len(rows) == MOST
    assert [row["seat"] for row in rows[:4]] == [0, 1, 2, 0]
    assert rows[5] == {"seed": 5, "seat": 2}
    assert Seeds(size=1, eval_size=1).of("train")[0] == {"seed": 0}


@pytest.mark.parametrize("wrong", [{"size": -1}, {"shift": -1}, {"size": MOST, "shift": 1}])
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ConfigError, match="must not"):
        Seeds(**{"size": 1, "eval_size": 1, **wrong})
