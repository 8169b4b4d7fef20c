"""A2POTrainer's regression and OnlineDPOTrainer's pairs, by TRL's own lines (see `trl_parity.py`).

Rollouts 2k and 2k+1 are a pair: two completions of one prompt. The networks are tables, also the reference's.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from trl.experimental.a2po import A2POConfig, A2POTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl_stubs import (
    GROUP,
    LENGTHS,
    MAX_TOKENS,
    PAIR_REWARDS,
    PROMPT,
    TIED_REWARDS,
    WIDTH,
    float64,
    make_model,
    make_tokenizer,
    mask,
    padded,
    plain_options,
    policy_of,
    ragged,
    reference_of,
    with_prompt,
)

PAIRS = len(LENGTHS) // 2
POLICY_ROWS, RIVAL_ROWS = list(range(0, 2 * PAIRS, 2)), list(range(1, 2 * PAIRS, 2))

REGRESSION_CASES = [
    {"beta1": 0.5, "beta2": 1e-3},
    {"beta1": 0.5, "beta2": 0.1},
    {"beta1": 2.0, "beta2": 0.5},
]
REFERENCE_REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
"""Rewards of the samples from the reference: four of the first prompt, then four of the second."""
REGRESSION_REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
"""Rewards of the rollouts: rows 0-3 answer the first prompt, rows 4-7 the second."""

PAIR_CASES = [
    {"loss_type": "sigmoid", "beta": 0.1, "rewards": PAIR_REWARDS},
    {"loss_type": "sigmoid", "beta": 1.0, "rewards": PAIR_REWARDS},
    {"loss_type": "sigmoid", "beta": 1.0, "rewards": TIED_REWARDS},
    {"loss_type": "ipo", "beta": 0.1, "rewards": PAIR_REWARDS},
    {"loss_type": "ipo", "beta": 1.0, "rewards": PAIR_REWARDS},
]
OVER_PADDING = ("objective/entropy",)
"""Metrics that sum log-probs over padding, which our tables give an arbitrary value."""


def regressions(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    entries = []
    for case in REGRESSION_CASES:
        with float64():
            found = regression_of(case, inputs, folder)
        entries.append({"kind": "a2po", "trainer": "trl.experimental.a2po.A2POTrainer", "case": case, **found})
    return entries


def regression_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """V* by `_estimate_optimal_values`, then `compute_loss`.

    The batch is not made by `_prepare_inputs`: it finds a completion's end by its EOS, which these completions lack, and rounds V* to
    float32.
    """
    rewards = {"of": REFERENCE_REWARDS}
    options = {"num_value_samples": GROUP, "max_completion_length": MAX_TOKENS}
    trainer = A2POTrainer(
        model=make_model(),
        reward_funcs=lambda prompts, completions, **columns: rewards["of"],
        args=A2POConfig(**plain_options(folder), **options, **case),
        train_dataset=Dataset.from_dict({"prompt": ["a b", "b a"]}),
        processing_class=make_tokenizer(),
    )
    trainer.ref_model.generate = lambda **columns: torch.full((2 * GROUP, len(PROMPT) + 1), PROMPT[0])
    trainer._estimate_optimal_values()
    optimal = [trainer._optimal_values["a b"]] * GROUP + [trainer._optimal_values["b a"]] * GROUP
    rewards["of"] = REGRESSION_REWARDS
    batch = {
        "input_ids": with_prompt(padded(inputs["ids"])),
        "attention_mask": with_prompt(mask(), torch.ones(1, dtype=torch.long)),
        "logits_to_keep": WIDTH,
        "rewards": trainer._calculate_rewards(["a b"] * len(LENGTHS), ["x"] * len(LENGTHS)),
        "v_star": torch.tensor(optimal),
    }
    scored = (batch["input_ids"], batch["attention_mask"], WIDTH)
    batch["ref_logps"] = trainer._get_sequence_logps(reference_of(inputs), *scored).detach()
    network = policy_of(inputs)
    trainer.model.train()
    loss = trainer.compute_loss(network, batch)
    (gradient,) = torch.autograd.grad(loss, network.leaf)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    found = {"loss": loss.item(), "gradient": ragged(gradient), "metrics": metrics}
    return found | {"reference_rewards": REFERENCE_REWARDS, "rewards": REGRESSION_REWARDS, "optimal_values": optimal}


def pair_losses(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    entries = []
    for case in PAIR_CASES:
        with float64():
            found = online_dpo_of(case, inputs, folder)
        entries.append({"kind": "online_dpo", "trainer": "trl.experimental.online_dpo.OnlineDPOTrainer", "case": case, **found})
    return entries


def online_dpo_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """One `training_step`; only its `_generate` is replaced, and the two networks."""
    order = POLICY_ROWS + RIVAL_ROWS  # TRL's batch: the first completion of every prompt, then the second
    rewards = [case["rewards"][row] for row in order]
    options = {"max_new_tokens": MAX_TOKENS, "loss_type": case["loss_type"], "beta": case["beta"]}
    trainer = OnlineDPOTrainer(
        model=make_model(),
        reward_funcs=lambda prompts, completions, **columns: rewards,
        args=OnlineDPOConfig(**plain_options(folder), **options),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * PAIRS}),
        processing_class=make_tokenizer(),
    )
    trainer.ref_model = reference_of(inputs)
    ids, kept = padded(inputs["ids"])[order], mask()[order]
    prompts = with_prompt(ids[:, :0])
    trainer._generate = lambda model, texts, images: (prompts, torch.ones_like(prompts), ids, kept, None)
    network = policy_of(inputs)
    loss = trainer.training_step(network, {"prompt": ["a b"] * PAIRS})
    return {"loss": loss.item(), "gradient": network.gradient(), "metrics": stats_of(trainer)}


def stats_of(trainer: OnlineDPOTrainer) -> dict[str, float]:
    return {name: values[-1] for name, values in trainer.stats.items() if values and name not in OVER_PADDING and "eos" not in name}
