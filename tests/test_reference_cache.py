"""Reference log-probs computed once: the same as computed each step, kept for the very same rows, and without a reference in memory."""

from __future__ import annotations

import numpy as np
import pytest
from example_fakes import Rows, preferences
from learner_fakes import make_learner, run_config, tiny_model

from agentrl.errors import ConfigError
from agentrl.reference_cache import compute, is_kept, read


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def rows_of(count=6, seed=0):
    return Rows(preferences(count, seed))


def test_training_with_kept_log_probs_is_training_with_a_reference(tmp_path, model):
    rows = rows_of()
    plain, cached = (make_learner(model, run_config(), "dpo") for _ in range(2))
    done = []
    compute(tmp_path, "train", rows, cached, done.append)
    cached.forget_reference()
    kept = read(tmp_path, "train", rows)
    assert done == [6]
    assert cached.models.reference is None
    for _ in range(3):
        expected = plain.update_examples(list(rows))
        found = cached.update_examples([kept[index] for index in range(len(kept))])
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert found["loss"] < np.log(2)  # it has moved away from where policy and reference are one


def test_log_probs_are_kept_for_their_own_rows_alone(tmp_path, model):
    rows = rows_of()
    compute(tmp_path, "train", rows, make_learner(model, run_config(), "dpo"), lambda done: None)
    assert is_kept(tmp_path, "train", rows)
    assert not is_kept(tmp_path, "eval", rows)
    assert not is_kept(tmp_path, "train", rows_of(5))
    other = rows_of()
    other.fingerprint = "another"
    assert not is_kept(tmp_path, "train", other)


def test_a_torn_file_is_told(tmp_path, model):
    rows = rows_of()
    compute(tmp_path, "train", rows, make_learner(model, run_config(), "dpo"), lambda done: None)
    np.save(tmp_path / "train-logprobs.npy", np.zeros(3, dtype=np.float32))
    with pytest.raises(ConfigError, match="are torn; remove that folder"):
        read(tmp_path, "train", rows)
