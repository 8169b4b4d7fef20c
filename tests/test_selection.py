import math

import msgspec
import pytest

from agentrl.errors import ConfigError
from agentrl.selection import Selection, selection

LOSS = {"metric": "eval_loss", "higher_is_better": None}


def judge(chosen, values, *, every=10):
    """Each evaluation's verdict, as (best so far, stop)."""
    verdicts = []
    for index, value in enumerate(values):
        chosen = chosen.judged((index + 1) * every, {chosen.metric: value})
        verdicts.append((chosen.improved, chosen.exhausted))
    return chosen, verdicts


def test_a_loss_is_best_where_it_is_lowest():
    chosen, verdicts = judge(selection(**LOSS, patience=None), [3.0, 2.0, 2.5, 2.0, 1.5])
    assert [best for best, _ in verdicts] == [True, True, False, False, True]
    assert not any(stop for _, stop in verdicts)
    assert chosen.said == "best eval_loss 1.5 at step 50"


def test_an_accuracy_is_best_where_it_is_highest():
    chosen, verdicts = judge(selection("eval_rewards/accuracies", None, None), [0.5, 0.7, 0.6])
    assert [best for best, _ in verdicts] == [True, True, False]
    assert (chosen.best, chosen.best_step) == (0.7, 20)


def test_a_run_stops_after_so_many_evaluations_in_a_row_that_were_no_better():
    _, verdicts = judge(selection(**LOSS, patience=2), [3.0, 3.0, 2.0, 2.5, 2.0, 1.0])
    assert [stop for _, stop in verdicts] == [False, False, False, False, True, False]  # the fifth; what follows would begin anew


def test_a_figure_that_is_not_finite_is_never_the_best():
    chosen, verdicts = judge(selection(**LOSS, patience=3), [math.nan, -math.inf, math.nan])
    assert verdicts == [(False, False), (False, False), (False, True)]
    assert chosen.said == "no evaluation has given a finite eval_loss"


def test_the_same_step_judged_again_changes_nothing():
    chosen = selection(**LOSS, patience=1).judged(10, {"eval_loss": 2.0})
    assert chosen.judged(10, {"eval_loss": 1.0}) == chosen


def test_it_survives_a_checkpoint():
    chosen, _ = judge(selection(**LOSS, patience=2), [3.0, 2.0, 2.5])
    assert msgspec.json.decode(msgspec.json.encode(chosen), type=Selection) == chosen


@pytest.mark.parametrize(("metric", "meant"), [("loss", "eval_loss"), ("eval_los", "eval_loss")])
def test_an_unknown_metric_is_refused_with_those_there_are(metric, meant):
    chosen = selection(metric, False, None)
    with pytest.raises(ConfigError, match=rf"gives eval_entropy, eval_loss; did you mean {meant}\?"):
        chosen.judged(10, {"eval_loss": 1.0, "eval_entropy": 2.0, "loss": 0.5, "eval_time/forward_s": 1.0})


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("eval_loss", False),
        ("eval_nll_loss", False),
        ("eval_mean_token_accuracy", True),
        ("eval_rewards/margins", True),
        ("eval_reward", True),
        ("eval_accuracy", True),
        ("eval_kl", False),
    ],
)
def test_the_name_says_which_way_is_better(metric, higher):
    assert selection(metric, None, None).higher_is_better is higher
    assert selection(metric, not higher, None).higher_is_better is not higher


def test_a_name_that_does_not_say_it_takes_the_key():
    with pytest.raises(ConfigError, match=r"set evaluation\.higher_is_better to true or false"):
        selection("eval_entropy", None, None)
