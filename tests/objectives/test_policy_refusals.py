"""Every combination of options that an objective says it refuses is refused, with its reason, and no other sentence is listed."""

from __future__ import annotations

import pytest
from toys import SHARED

from agentrl.errors import ConfigError
from agentrl.objectives import get, validate
from agentrl.objectives.registry import BUILT_IN

REFUSALS = {
    "two corrections that weigh": [
        ({"corrections": [{"name": "sequence_tis"}, {"name": "tis"}]}, SHARED, r"mismatch twice: keep one"),
        ({"corrections": [{"name": "sequence_tis"}]}, ["aipo", "vespo", "dppo", "m2po", "decoupled_ppo"], r"corrected twice"),
    ],
    "a correction of tokens, top_entropy or turn_discount where": [
        ({"corrections": [{"name": "ratio_cap"}]}, ["rloo"], r"ratio_cap acts on tokens, and rloo has one loss a rollout"),
        ({"top_entropy": 0.5}, ["rloo"], r"top_entropy chooses tokens, and rloo has one loss a rollout"),
        ({"turn_discount": 0.5}, ["rloo"], r"turn_discount credits turns, and rloo has one loss a rollout"),
    ],
    "kl_estimator k1 in the loss": [
        ({"beta": 0.1, "kl_in": "loss", "kl_estimator": "k1", "kl_correction": False}, SHARED, r"expected gradient of 0"),
    ],
    "kl_target without beta": [({"beta": 0.0, "kl_target": 1.0}, SHARED, r"kl_target adapts beta, and beta is 0")],
    "normalize_then_sum with another baseline": [
        (
            {"reward_aggregation": "normalize_then_sum", "baseline": "batch", "scale_rewards": "none"},
            [name for name in SHARED if name not in ("bnpo", "ppo")],
            r"set baseline and scale_rewards to group",
        ),
        (
            {"reward_aggregation": "normalize_then_sum", "baseline": "group", "scale_rewards": "group", "turn_discount": 0.5},
            [name for name in SHARED if name not in ("bnpo", "ppo")],
            r"turn_discount and normalize_then_sum",
        ),
    ],
    "scale_rewards with a baseline": [
        (
            {"baseline": "none", "scale_rewards": "batch"},
            [name for name in SHARED if name not in ("bnpo", "ppo")],
            r"set scale_rewards to none",
        ),
    ],
    "options that others leave without effect": [
        ({"overlong_cache": 5}, SHARED, r"overlong_cache has no effect without overlong_length"),
        ({"entropy_coef_max": 0.5}, SHARED, r"entropy_coef_max has no effect without entropy_target"),
        ({"running_decay": 0.5}, [name for name in SHARED if name != "reinforce"], r"belong to baseline running"),
    ],
    "label_smoothing with loss dft": [({"loss": "dft", "label_smoothing": 0.1}, ["sft"], r"label_smoothing=0.1 smooths the likelihood")],
    "entropy_coef_min above entropy_coef_max": [
        ({"entropy_target": 1.0, "entropy_coef_min": 0.9, "entropy_coef_max": 0.5}, SHARED, r"entropy_coef_min=0.9 must not exceed"),
        ({"overlong_length": 10, "overlong_cache": 11}, SHARED, r"overlong_cache=11 must not exceed overlong_length=10"),
    ],
    "delta up to 1 + clip_high": [
        (
            {"clip_low": 0.2, "clip_high": 0.5, "delta": 1.5},
            ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "gspo_token", "luspo", "clip_cov", "rloo", "ppo", "decoupled_ppo", "minillm"],
            r"delta=1.5 must exceed 1 \+ clip_high",
        ),
    ],
    "reward_min at or above reward_max": [({"reward_min": 2.0}, ["bnpo"], r"reward_min=2.0 must be below reward_max=1.0")],
    "cov_min above cov_max": [({"cov_min": 9.0}, ["clip_cov"], r"cov_min=9.0 must not exceed cov_max=5.0")],
    "normalize_advantages with baseline": [
        ({"normalize_advantages": True, "baseline": "running"}, ["rloo"], r"normalize_advantages divides by the advantages' own spread"),
    ],
    "seq_kd with lmbda 1": [({"seq_kd": True, "lmbda": 1.0}, ["gkd"], r"lmbda=1 leaves none: lower lmbda")],
    "estimate sampled with another mixture": [
        ({"estimate": "sampled", "mixture": 0.5}, ["opd"], r"mixture=0.5 asks for another divergence"),
        ({"estimate": "sampled", "temperature": 0.5}, ["opd"], r"remove temperature"),
    ],
    "top_k without estimate top_k": [
        ({"top_k": 5}, ["opd"], r"top_k is the number of tokens"),
        ({"estimate": "top_k"}, ["opd"], r"top_k is the number of tokens"),
    ],
    "options about rewards with reward_coef 0": [
        ({"dynamic_sampling": True}, ["opd", "minillm"], r"dynamic_sampling is about rewards, and reward_coef is 0"),
        ({"baseline": "leave_one_out"}, ["opd", "minillm"], r"baseline is about rewards, and reward_coef is 0"),
        ({"beta": 0.1, "kl_in": "reward"}, ["opd", "minillm"], r"kl_in is about rewards, and reward_coef is 0"),
    ],
    "ratio_max where nothing": [({"ratio_max": 2.0}, ["opd"], r"ratio_max bounds the weight of sampled tokens")],
    "a token's own disagreement": [({"single_step": False}, ["minillm"], r"counts nowhere")],
    "gamma 0 without own": [({"gamma": 0.0}, ["minillm"], r"credits a token with nothing")],
    "pairing extremes with preferences judge": [({"pairing": "extremes", "preferences": "judge"}, ["online_dpo"], r"pairing extremes")],
    "truncated_penalty with preferences judge": [
        ({"truncated_penalty": 1.0, "preferences": "judge"}, ["online_dpo", "xpo"], r"truncated_penalty is taken off a reward"),
    ],
    "matched_weight without unmatched_weight": [({"hybrid": True, "matched_weight": 0.5}, ["gold"], r"go together: set both")],
    "beta and the two weights without hybrid": [
        ({"beta": 0.1}, ["gold"], r"of the hybrid form: set hybrid, or remove them"),
        ({"matched_weight": 0.5, "unmatched_weight": 0.5}, ["gold"], r"of the hybrid form: set hybrid, or remove them"),
    ],
    "distillation_weight and crossentropy_weight both 0": [
        ({"distillation_weight": 0.0, "crossentropy_weight": 0.0}, ["gold"], r"nothing would be learned"),
    ],
    "estimate sampled with another alpha": [
        ({"estimate": "sampled", "alpha": 0.5}, ["sdft", "sdpo"], r"alpha=0.5 asks for another divergence"),
    ],
    "top_k or tail without estimate top_k": [
        ({"estimate": "full", "tail": True}, ["sdft", "sdpo"], r"top_k and tail are of estimate top_k"),
        ({"estimate": "full", "top_k": 7}, ["sdft", "sdpo"], r"top_k and tail are of estimate top_k"),
        ({"estimate": "top_k", "top_k": None}, ["sdft", "sdpo"], r"estimate top_k needs top_k"),
    ],
    "a template without {prompt}": [({"template": "{prompt}"}, ["sdft"], r"template has no \{privileged_context\}")],
    "solutions and feedback both false": [({"solutions": False}, ["sdpo"], r"set one of them")],
    "templates without the places": [
        ({"template": "{prompt}"}, ["sdpo"], r"template has no \{solution\}"),
        ({"solution_template": "right"}, ["sdpo"], r"solution_template has no \{solution\}"),
        ({"feedback_template": "wrong"}, ["sdpo"], r"feedback_template has no \{feedback\}"),
        ({"feedback": True, "template": "{prompt}{solution}"}, ["sdpo"], r"template has no \{feedback\}, and feedback is true"),
    ],
    "loss exo_pair without label_smoothing": [({"loss": "exo_pair"}, ["dpo"], r"exo_pair needs label_smoothing > 0")],
    "label_smoothing, f_alpha, discopop_tau or ipo_sums": [
        ({"loss": "hinge", "label_smoothing": 0.1}, ["dpo"], r"label_smoothing has no effect on hinge"),
        ({"f_alpha": 0.7}, ["dpo"], r"f_alpha belongs to f_divergence alpha_divergence"),
        ({"discopop_tau": 0.2}, ["dpo"], r"discopop_tau belongs to loss discopop"),
        ({"ipo_sums": True}, ["dpo"], r"ipo_sums belongs to loss ipo"),
    ],
    "f_divergence with a loss": [({"loss": "nca_pair", "f_divergence": "forward_kl"}, ["dpo"], r"that nca_pair does not read")],
    "weighting with aot": [({"loss": "aot", "weighting": True}, ["dpo"], r"weighting weighs pairs, and aot compares texts of other rows")],
    "reference_free with a loss": [
        ({"loss": "nca_pair", "reference_free": True}, ["dpo"], r"reference_free has no meaning for nca_pair"),
        ({"f_divergence": "forward_kl", "reference_free": True}, ["dpo"], r"and reference_free has none"),
    ],
    "loss sft alone": [({"loss": "sft"}, ["dpo"], r"loss sft alone compares nothing")],
    "label_smoothing with hinge or ipo, or gamma without": [
        ({"loss": "hinge", "label_smoothing": 0.1}, ["cpo", "tpo"], r"label_smoothing has no effect on hinge"),
        ({"loss": "sigmoid", "gamma": 0.7}, ["cpo", "tpo"], r"gamma belongs to loss"),
    ],
    "min_density_ratio, max_density_ratio or density_ratio_rows without": [
        ({"max_density_ratio": 3.0}, ["bco"], r"max_density_ratio has no effect without density_ratio"),
        ({"density_ratio_rows": 64}, ["bco"], r"density_ratio_rows has no effect without density_ratio"),
    ],
}
"""The beginning of a sentence of `Objective.refused`: cases of it, and the objectives that refuse them."""


def test_every_refusal_that_is_listed_has_a_case_here():
    listed = {sentence for objective in BUILT_IN for sentence in objective.refused}
    assert {sentence: [start for start in REFUSALS if sentence.startswith(start)] for sentence in listed} == {
        sentence: [next((start for start in REFUSALS if sentence.startswith(start)), "a case is missing")] for sentence in listed
    }
    assert all(any(sentence.startswith(start) for sentence in listed) for start in REFUSALS)


@pytest.mark.parametrize("start", REFUSALS)
def test_what_is_listed_is_refused_and_what_is_refused_is_listed(start):
    for options, names, said in REFUSALS[start]:
        for name in names:
            assert any(sentence.startswith(start) for sentence in get(name).refused), name
            with pytest.raises(ConfigError, match=said):
                validate({"name": name, **options})
