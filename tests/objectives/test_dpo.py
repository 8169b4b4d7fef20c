"""Options of DPO and its relatives that are refused, extremes, and that every loss has a row in the report."""

from __future__ import annotations

import re
from typing import get_args

import numpy as np
import pytest
import torch
import toys
from report_preference_rows import PREFERENCES

from agentrl.errors import ConfigError
from agentrl.examples import Example, Text
from agentrl.objectives import get, validate
from agentrl.objectives.cpo import CPOConfig
from agentrl.objectives.dpo import DPOConfig, Loss, ranked_pairs
from agentrl.objectives.dpo_losses import LOSSES
from agentrl.objectives.kto import KTOConfig
from agentrl.objectives.registry import BUILT_IN
from agentrl.objectives.tpo import TPOConfig


def refused(**options):
    with pytest.raises(ConfigError) as error:
        validate(options)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "exo_pair"}, r"exo_pair needs label_smoothing > 0.*1e-3"),
        ({"loss": "robust", "label_smoothing": 0.5}, r"label_smoothing"),
        ({"loss": ["sigmoid", "hinge"], "loss_weights": [1.0]}, r"loss_weights has 1 numbers for 2 losses \(sigmoid, hinge\)"),
        ({"loss": ["sigmoid", "sigmoid"]}, r"names sigmoid twice"),
        ({"loss": []}, r"loss is an empty list"),
        ({"loss": "hinge", "label_smoothing": 0.1}, r"label_smoothing has no effect on hinge"),
        ({"loss": "sigmoid", "f_alpha": 0.3}, r"f_alpha belongs to f_divergence alpha_divergence, which is reverse_kl"),
        ({"loss": "aot", "f_divergence": "forward_kl"}, r"f_divergence forward_kl shapes scores that aot does not read"),
        ({"loss": ["sigmoid", "bco_pair"], "f_divergence": "js_divergence"}, r"that bco_pair does not read"),
        ({"loss": "aot_unpaired", "weighting": True}, r"weighting weighs pairs, and aot_unpaired compares texts of other rows"),
        ({"loss": "apo_zero", "reference_free": True}, r"reference_free has no meaning for apo_zero"),
        ({"reference_free": True, "f_divergence": "forward_kl"}, r"reference_free has none"),
        ({"loss": "sft"}, r"compares nothing.*objective sft"),
        ({"discopop_tau": 0.1}, r"discopop_tau belongs to loss discopop"),
        ({"ipo_sums": True}, r"ipo_sums belongs to loss ipo"),
        ({"loss": "sigmod"}, r"objective\.loss.*sigmod"),
        ({"loss": ["sigmoid", "sfd"]}, r"loss names 'sfd'; a list of losses may name sigmoid, hinge"),
        ({"beta": 0.0}, r"objective\.beta"),
        ({"loss_type": "sigmoid"}, r"objective\.loss_type"),
    ],
    ids=str,
)
def test_options_of_dpo_that_are_refused(options, said):
    assert re.search(said, refused(name="dpo", **options), re.DOTALL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cpo", "loss": "hinge", "label_smoothing": 0.1}, "label_smoothing has no effect on hinge"),
        ({"name": "cpo", "gamma": 1.0}, "gamma belongs to loss simpo"),
        ({"name": "tpo", "loss": "ipo", "label_smoothing": 0.1}, "label_smoothing has no effect on ipo"),
        ({"name": "tpo", "gamma": 1.0}, "gamma belongs to loss tpo_l"),
        ({"name": "bco", "max_density_ratio": 5.0}, "max_density_ratio has no effect without density_ratio"),
        ({"name": "bco", "density_ratio": True, "min_density_ratio": 11.0}, "must not exceed"),
        ({"name": "kto", "desirable_weight": -1.0}, "desirable_weight"),
        ({"name": "kto", "loss": "apo_zero"}, "apo_zero_unpaired"),
    ],
    ids=str,
)
def test_options_of_the_others_that_are_refused(options, said):
    assert said in refused(**options)


def test_a_run_file_s_own_values_are_taken_back():
    for name in ("dpo", "cpo", "simpo", "cpo_simpo", "alphapo", "orpo", "tpo", "kto", "bco"):
        config = validate({"name": name})
        assert validate(config.model_dump(mode="json")) == config
    several = {"name": "dpo", "loss": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    assert validate(validate(several).model_dump(mode="json")).losses == ("sigmoid", "bco_pair", "sft")


def test_every_preference_objective_and_every_loss_of_it_has_a_row():
    options = [row.options for row in PREFERENCES]
    assert {one["name"] for one in options} == {one.name for one in BUILT_IN if one.data in ("preference", "unpaired")} - {"reward_model"}
    of_dpo = {loss for one in options if one["name"] == "dpo" for loss in ([one["loss"]] if isinstance(one["loss"], str) else one["loss"])}
    assert of_dpo == {*get_args(Loss)} == {*LOSSES, "sft"}
    for config, name in ((CPOConfig, "cpo"), (TPOConfig, "tpo"), (KTOConfig, "kto")):
        losses = {one.get("loss", config().loss) for one in options if one["name"] == name}
        assert losses == {*get_args(config.model_fields["loss"].annotation)}
    divergences = {one.get("f_divergence", "reverse_kl") for one in options if one["name"] == "dpo"}
    assert divergences == {*get_args(DPOConfig.model_fields["f_divergence"].annotation)}


def extreme(gap, dtype=torch.float32):
    """A pair whose texts are this many nats nearer and farther than the reference."""
    start = -max(abs(gap), 1.0) - 1.0
    return toys.batch(
        [[start + gap], [start]],
        [[start], [start]],
        [0.0, 0.0],
        dtype=dtype,
        reference_logprobs=[[start], [start]],
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
    )


@pytest.mark.parametrize("loss", sorted({*LOSSES} - {"aot", "aot_unpaired"}))
@pytest.mark.parametrize("gap", [-300.0, -30.0, 0.0, 30.0, 300.0])
def test_losses_and_slopes_are_finite_far_from_the_reference(loss, gap):
    batch = extreme(gap)
    found = toys.losses("dpo", batch, loss=loss, beta=1.0, **({"label_smoothing": 0.1} if loss == "exo_pair" else {}))
    if loss == "discopop" and gap < -80:
        assert found.loss.item() == pytest.approx(-gap, rel=1e-5), "its exponential stays behind its gate"
    assert torch.isfinite(found.loss).all()
    assert torch.isfinite(toys.slopes(found, batch)).all()


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("gap", [-300.0, 300.0])
def test_divergences_are_finite_far_from_the_reference(divergence, gap):
    batch = extreme(gap)
    found = toys.losses("dpo", batch, f_divergence=divergence)
    assert torch.isfinite(found.loss).all()
    assert torch.isfinite(toys.slopes(found, batch)).all()


def test_the_odds_of_a_certain_text_are_finite():
    batch = toys.batch(
        [[0.0, 0.0], [-2.0]], [[0.0, 0.0], [0.0]], [0.0, 0.0], dtype=torch.float32, chosen=torch.tensor([0]), rejected=torch.tensor([1])
    )
    found = toys.losses("orpo", batch)
    assert torch.isfinite(found.loss).all()
    assert torch.isfinite(toys.slopes(found, batch)).all()


def test_a_row_without_tokens_takes_no_part_in_the_ranks():
    def row(start, reference):
        members = [
            toys.member((0,) * len(values), start_logprobs=values, reference_logprobs=known)
            for values, known in zip(start, reference, strict=True)
        ]
        return toys.group([1.0, 0.0], members)

    full = row([[-1.0], [-3.0]], [[-2.0], [-2.5]])
    other = row([[-2.0], [-1.0]], [[-1.0], [-4.0]])
    empty = row([[], [-1.0]], [[], [-1.0]])
    config = validate({"name": "dpo", "loss": "aot"})
    found = ranked_pairs([full, empty, other], config)
    assert found[1].parts == {}
    assert [credit.parts["matched"].tolist() for credit in (found[0], found[2])] == [[3.0, 3.0], [0.5, 0.5]]
    alone = ranked_pairs([other, full], config)
    assert [credit.parts["matched"].tolist() for credit in alone] == [[0.5, 0.5], [3.0, 3.0]]


def test_a_row_without_a_gold_text_is_named():
    text = Text(ids=np.arange(4, dtype=np.int32), trained=np.arange(4) > 1, prompt_length=2)
    pair = Example(where="pairs.jsonl, line 3", texts=(text, text), rewards=(1.0, 0.0))
    with pytest.raises(ConfigError, match=r"pairs\.jsonl, line 3: objective tpo learns from a third text.*`reference`.*tpo_alpha=0"):
        get("tpo").prepare([pair], validate({"name": "tpo"}))
    assert get("tpo").prepare([pair], validate({"name": "tpo", "tpo_alpha": 0.0})) == [pair]


def test_what_they_need():
    def needs(**options):
        return get(options["name"]).needs(validate(options))

    assert needs(name="dpo").reference
    assert not needs(name="dpo", reference_free=True).reference
    assert not needs(name="dpo").start
    assert needs(name="dpo", loss=["sigmoid", "aot"]).start
    assert needs(name="dpo", weighting=True).collision
    assert not any(needs(name=name).reference for name in ("orpo", "cpo", "simpo", "cpo_simpo", "alphapo", "tpo"))
    assert needs(name="kto").start
    assert needs(name="kto").mixes_rows
    assert not needs(name="kto", loss="apo_zero_unpaired").start
    assert needs(name="bco").density_ratio is None
    assert needs(name="bco", density_ratio=True, max_density_ratio=4.0).density_ratio.most == 4.0
