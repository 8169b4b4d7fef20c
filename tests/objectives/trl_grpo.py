"""GRPOTrainer's other losses, advantages of several rewards, and GMPOTrainer, by TRL's own lines (see `trl_parity.py`).

A batch comes out of TRL's `_generate_and_score_completions`, so that truncation masks and the ratios that correct for vLLM are TRL's;
only its advantages are then replaced by fixed ones. `old_per_token_logps` are `recomputed` where the case has `use_vllm`, else `sampler`.
"""

from __future__ import annotations

import math

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl_stubs import FLOAT32_METRICS, PROMPT, float64, make_trainer, padded, policy_of, ragged

KINDS = {"grpo": (GRPOConfig, GRPOTrainer), "gmpo": (GMPOConfig, GMPOTrainer)}
SEQUENCE = {"importance_sampling_level": "sequence"}
NARROW = {"epsilon": 3e-4, "epsilon_high": 4e-4}
WIDE = {"epsilon": 0.2, "epsilon_high": 0.28}


def vllm(mode: str, low: float | None, high: float | None) -> dict[str, object]:
    bounds = {"vllm_importance_sampling_clip_min": low, "vllm_importance_sampling_clip_max": high}
    return {"use_vllm": True, "vllm_importance_sampling_mode": mode, **bounds}


CASES = [
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "cispo", "epsilon_high": 1.2},
    {"loss_type": "cispo", "epsilon_high": 1.2, "beta": 0.04},
    {"loss_type": "sapo"},
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 5.0},
    {"loss_type": "sapo", **SEQUENCE},
    {"loss_type": "vespo"},
    {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 0.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": 1.0},
    {"loss_type": "vespo", **vllm("token_truncate", None, 1.25)},
    {"loss_type": "vespo", **vllm("token_mask", None, 1.25)},
    {"loss_type": "luspo", **SEQUENCE, "epsilon": 2e-3, "epsilon_high": 2.5e-3},
    {"loss_type": "luspo", **SEQUENCE, **WIDE},
    {"loss_type": "luspo", **SEQUENCE, **WIDE, "beta": 0.04},
    {"loss_type": "grpo", **SEQUENCE, **NARROW},
    {"loss_type": "grpo", **SEQUENCE, **WIDE},
    {"loss_type": "grpo", **SEQUENCE, **WIDE, "delta": 1.3},
    {"loss_type": "grpo", **SEQUENCE, **WIDE, "beta": 0.04},
    {"loss_type": "grpo", **SEQUENCE, **WIDE, "beta": 0.04, "use_bias_correction_kl": False},
    {"loss_type": "dapo", **WIDE, "delta": 1.5},
    {"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
    {"loss_type": "dapo", "off_policy_mask_threshold": 0.05, "beta": 0.04},
    {"loss_type": "grpo", "off_policy_mask_threshold": 0.05, **vllm("token_truncate", None, 1.25)},
    {"loss_type": "grpo", "top_entropy_quantile": 0.5},
    {"loss_type": "dapo", "top_entropy_quantile": 0.5, "epsilon_high": 0.28},
    {"loss_type": "grpo", "top_entropy_quantile": 0.37},
    {"loss_type": "dapo", "top_entropy_quantile": 0.37, "beta": 0.04},
    {"loss_type": "grpo", "entropy_coef": 0.01},
    {"loss_type": "dapo", "entropy_coef": 0.01},
    {"loss_type": "grpo", "entropy_coef": 0.01, "top_entropy_quantile": 0.37},
    # The first call only measures the entropy, 1.6 nats: TRL applies no bonus before it has measured. The second is stored.
    {"loss_type": "grpo", "entropy_coef": 0.01, "use_adaptive_entropy": True, "entropy_target": 2.0, "calls": 2},
    {"loss_type": "grpo", "entropy_coef": 0.01, "use_adaptive_entropy": True, "entropy_target": 0.5, "calls": 2},
    {"loss_type": "grpo", **vllm("token_truncate", None, 1.25)},
    {"loss_type": "grpo", **vllm("token_truncate", 0.9, 1.25)},
    {"loss_type": "grpo", **vllm("token_mask", None, 1.25)},
    {"loss_type": "grpo", **vllm("token_mask", 0.9, 1.25)},
    {"loss_type": "grpo", **vllm("sequence_truncate", None, 1.25)},
    {"loss_type": "grpo", **vllm("sequence_truncate", 0.55, 1.25)},
    {"loss_type": "grpo", **vllm("sequence_mask", None, 1.25)},
    {"loss_type": "grpo", **vllm("sequence_mask", 0.55, 1.25)},
    {"loss_type": "dapo", "beta": 0.04, **vllm("token_truncate", None, 1.25)},
    {"loss_type": "dapo", "beta": 0.04, **vllm("sequence_mask", 0.55, 1.25)},
    {"loss_type": "cispo", "epsilon_high": 1.2, **vllm("token_truncate", None, 1.25)},
    {"loss_type": "sapo", **vllm("token_mask", 0.9, 1.25)},
    {"loss_type": "grpo", **SEQUENCE, **WIDE, **vllm("sequence_truncate", None, 1.25)},
    {"loss_type": "grpo", **SEQUENCE, **WIDE, **vllm("token_truncate", None, 1.25)},
    {"loss_type": "grpo", "mask_truncated_completions": True, "end_ids": [2, 6]},
    {"loss_type": "dapo", "mask_truncated_completions": True, "end_ids": [2, 6]},
    {"loss_type": "dr_grpo", "mask_truncated_completions": True, "end_ids": [2, 6]},
]
GMPO_CASES = [
    {},
    {"epsilon": 0.1, "epsilon_high": 0.3},
    {"epsilon": 0.1, "epsilon_high": 0.3, "beta": 0.04},
    {"epsilon": 0.1, "epsilon_high": 0.3, "top_entropy_quantile": 0.37},
]
FIRST = [1.0, 0.0, 0.25, 0.0, 0.5, -1.0, 2.0, 0.75]
SECOND = [0.5, 4.0, -2.0, 1.0, 8.0, 2.0, 2.0, 0.0]
GAPS = [None, 4.0, -2.0, None, 8.0, None, 2.0, 0.0]
ALL_OF_ONE_GROUP = [None, None, None, None, 8.0, 2.0, 2.0, 0.0]
BOTH_MISSING = [1.0, 0.0, 0.25, None, 0.5, -1.0, 2.0, 0.75]
WEIGHTS = {"reward_weights": [0.5, 2.0]}
ADVANTAGE_CASES = [
    {**WEIGHTS, "multi_objective_aggregation": aggregation, "scale_rewards": scale, "rewards": rewards}
    for aggregation, scales in (("sum_then_normalize", ("group", "batch", "none")), ("normalize_then_sum", ("group",)))
    for scale in scales
    for rewards in ([FIRST, SECOND], [FIRST, GAPS], [FIRST, ALL_OF_ONE_GROUP], [BOTH_MISSING, GAPS])
]


def surrogates(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    """Losses of every case, as entries of the file."""
    grpo = [entry("grpo", "trl.GRPOTrainer", case, inputs, folder) for case in CASES]
    return grpo + [entry("gmpo", "trl.experimental.gmpo.GMPOTrainer", case, inputs, folder) for case in GMPO_CASES]


def entry(kind: str, trainer: str, case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    with float64():
        return {"kind": kind, "trainer": trainer, "case": case, **FLOAT32_METRICS, **loss_of(kind, case, inputs, folder)}


def more_advantages(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    """Advantages from two weighted reward functions, as entries of the file."""
    entries = []
    for case in ADVANTAGE_CASES:
        with float64():
            _, batch = scored_batch("grpo", case, inputs, folder)
        found = {"case": case, "advantages": batch["advantages"].tolist()}
        entries.append({"kind": "grpo", "trainer": "trl.GRPOTrainer", **found})
    return entries


def scored_batch(kind: str, case: dict[str, object], inputs: dict[str, list], folder: str) -> tuple[GRPOTrainer, dict[str, torch.Tensor]]:
    """The trainer, and its batch from fixed completions and rewards."""
    ids = inputs["ids"]
    rewards = case.get("rewards", [[0.0] * len(ids)])
    functions = [lambda prompts, row=row, **columns: row for row in rewards]
    trainer = make_trainer({"trainer": kind, **case}, folder, functions, KINDS)
    trainer.use_vllm = case.get("use_vllm", False)
    trainer.eos_token_ids = case.get("end_ids", trainer.eos_token_ids)
    sampled = inputs["sampler"] if trainer.use_vllm else None
    trainer._generate = lambda _: ([PROMPT] * len(ids), ids, None, ["x"] * len(ids), sampled, {}, None, [])

    def scored(model: object, *args: object, **options: object) -> tuple[torch.Tensor, None, None]:
        return padded(inputs["reference"] if model is trainer.ref_model else inputs["recomputed"]), None, None

    real = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = scored
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "a b"} for _ in ids])
    trainer._get_per_token_logps_and_entropies = real
    return trainer, batch


def loss_of(kind: str, case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """TRL's `_compute_loss`, its gradient with respect to the table of logits, its metrics, and the ratio that it corrected by."""
    trainer, batch = scored_batch(kind, case, inputs, folder)
    batch["advantages"] = torch.tensor(inputs["advantages"], dtype=torch.float64)
    if not trainer.use_vllm:
        batch["old_per_token_logps"] = padded(inputs["sampler"])
    trainer.current_gradient_accumulation_steps = 1
    network = policy_of(inputs)
    for _ in range(case.get("calls", 1)):
        loss = trainer._compute_loss(network, batch)
    (gradient,) = torch.autograd.grad(loss, network.leaf)
    found = {"loss": loss.item(), "gradient": ragged(gradient), "metrics": metrics_of(trainer)}
    if "importance_sampling_ratio" in batch:
        ratio = batch["importance_sampling_ratio"]
        found["importance_sampling_ratio"] = ratio[:, 0].tolist() if ratio.shape[1] == 1 else ragged(ratio)
    if "end_ids" in case:
        found["kept"] = batch["completion_mask"].any(1).tolist()
    return found


def metrics_of(trainer: GRPOTrainer) -> dict[str, float]:
    heads = ("kl", "entropy", "clip_ratio", "cispo", "vespo", "policy_loss", "sampling")
    last = {name: values[-1] for name, values in trainer._metrics["train"].items() if name.startswith(heads)}
    return {name: value for name, value in last.items() if math.isfinite(value)}
