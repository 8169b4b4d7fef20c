"""Compute what TRL 1.12 gives for objectives that TRL 1.16 no longer has; run by a Python that has TRL 1.12.0.

    python tests/objectives/trl_removed.py tests/objectives/trl_reference.json

It replaces only `removed` of that file, which `trl_parity.py` made. PPO left TRL with 1.13; GSPO-token, the replay buffer, Nash-MD and
XPO, which read the same in 1.12 and 1.13, left with 1.14.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from trl import GRPOConfig
from trl import __version__ as trl_version
from trl.experimental.grpo_with_replay_buffer import GRPOWithReplayBufferConfig, GRPOWithReplayBufferTrainer
from trl.experimental.gspo_token import GRPOTrainer as GSPOTokenTrainer
from trl.experimental.nash_md import NashMDConfig, NashMDTrainer
from trl.experimental.xpo import XPOConfig, XPOTrainer
from trl_ppo import ppo_losses
from trl_stubs import (
    FLOAT32_METRICS,
    GROUP,
    LENGTHS,
    MAX_TOKENS,
    PAIR_REWARDS,
    PROMPT,
    TIED_REWARDS,
    float64,
    make_inputs,
    make_model,
    make_more_inputs,
    make_tokenizer,
    make_trainer,
    mask,
    padded,
    plain_options,
    policy_of,
    ragged,
    reference_of,
    with_prompt,
    write,
)

KINDS = {"gspo_token": (GRPOConfig, GSPOTokenTrainer), "replay": (GRPOWithReplayBufferConfig, GRPOWithReplayBufferTrainer)}
PAIRS = len(LENGTHS) // 2

TOKEN_CASES = [
    {"epsilon": 3e-4, "epsilon_high": 4e-4},
    {"epsilon": 0.2, "epsilon_high": 0.28},
    {"epsilon": 0.2, "epsilon_high": 0.28, "delta": 1.3},
    {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.04},
    {"epsilon": 0.2, "epsilon_high": 0.28, "loss_type": "dapo"},
]
REPLAY_CASES = [
    {"scale_rewards": "group", "rewards": [1.0, 0.0, 0.25, 0.0, 0.5, -1.0, 2.0, 0.75]},
    {"scale_rewards": "none", "rewards": [1.0, 0.0, 0.25, 0.0, 0.5, -1.0, 2.0, 0.75]},
]
NASH_CASES = [{"beta": 0.1, "rewards": PAIR_REWARDS}, {"beta": 1.0, "rewards": PAIR_REWARDS}, {"beta": 1.0, "rewards": TIED_REWARDS}]
XPO_CASES = [
    {"loss_type": "sigmoid", "beta": 0.1, "alpha": 0.1, "rewards": PAIR_REWARDS},
    {"loss_type": "sigmoid", "beta": 1.0, "alpha": 1e-5, "rewards": PAIR_REWARDS},
    {"loss_type": "sigmoid", "beta": 1.0, "alpha": 0.1, "rewards": TIED_REWARDS},
    {"loss_type": "ipo", "beta": 0.1, "alpha": 0.1, "rewards": PAIR_REWARDS},
]


def token_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """GSPO-token's `_compute_loss`."""
    options = {"trainer": "gspo_token", "loss_type": "grpo", "importance_sampling_level": "sequence_token", **case}
    trainer = make_trainer(options, folder, lambda prompts, **columns: [0.0] * len(prompts), KINDS)
    ids, network = padded(inputs["ids"]), policy_of(inputs)
    prompts = with_prompt(ids[:, :0])
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask(),
        "advantages": torch.tensor(inputs["advantages"]),
        "old_per_token_logps": padded(inputs["sampler"]),
        "ref_per_token_logps": padded(inputs["reference"]),
        "num_items_in_batch": mask().sum(),
    }
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(network, batch)
    (gradient,) = torch.autograd.grad(loss, network.leaf)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return {**FLOAT32_METRICS, "loss": loss.item(), "gradient": ragged(gradient), "metrics": metrics}


def replay_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """The scores that `update_replay_buffer` keeps groups by, and the score that the trainer itself ends up with.

    `_generate_and_score_completions` hands over flat advantages, so that its one score is a sum over the whole batch (`batch_score`);
    `scores` come from calling the method with the shapes that it documents, a row a group.
    """
    ids, found = inputs["ids"], []
    trainer = make_trainer({"trainer": "replay", **case}, folder, lambda prompts, **columns: case["rewards"], KINDS)
    trainer._generate = lambda _: ([PROMPT] * len(ids), ids, None, ["x"] * len(ids), None, {}, None, [])
    trainer.replay_buffer = SimpleNamespace(max_size=64, add=lambda scores, groups: found.append(scores))
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "a b"} for _ in ids])
    groups = torch.tensor(case["rewards"]).view(-1, GROUP)
    deviations = groups.std(dim=1, keepdim=True).expand_as(groups)
    data = (batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
    trainer.update_replay_buffer(deviations[:, 0] > 0, batch["advantages"].view(-1, GROUP), deviations, *data, {})
    return {"advantages": batch["advantages"].tolist(), "scores": found[1], "batch_score": found[0]}


def pair_of(kind: str, case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """One `training_step` of Nash-MD or XPO; replaced are generation, scores and the two networks.

    Rollout 2k is the policy's, and 2k + 1 the mixture's (Nash-MD) or the reference's (XPO).
    """
    config, trainer_class = {"nash_md": (NashMDConfig, NashMDTrainer), "xpo": (XPOConfig, XPOTrainer)}[kind]
    options = {key: value for key, value in case.items() if key != "rewards"}
    trainer = trainer_class(
        model=make_model(),
        reward_funcs=lambda **columns: [],
        args=config(**plain_options(folder), max_new_tokens=MAX_TOKENS, **options),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * PAIRS}),
        processing_class=make_tokenizer(),
    )
    trainer.ref_model = reference_of(inputs)
    ones = torch.ones(1, dtype=torch.long)
    data = {"input_ids": with_prompt(padded(inputs["ids"])), "attention_mask": with_prompt(mask(), ones)}
    halves = [{key: value[start::2] for key, value in data.items()} for start in (0, 1)]
    rewards = torch.tensor(case["rewards"])
    trainer._generate_completions = lambda *columns: (None, None)
    trainer._process_completions = lambda *columns: halves
    trainer._compute_rewards = lambda *columns: (rewards[0::2], rewards[1::2])
    network = policy_of(inputs)
    loss = trainer.training_step(network, {"prompt": ["a b"] * PAIRS})
    metrics = {name: values[-1] for name, values in trainer.stats.items() if values and "eos" not in name}
    return {"loss": loss.item(), "gradient": network.gradient(), "metrics": metrics}


def entries(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    named = "trl.experimental."
    makers = [
        ("gspo_token", f"{named}gspo_token.GRPOTrainer", TOKEN_CASES, token_of),
        ("replay_score", f"{named}grpo_with_replay_buffer.GRPOWithReplayBufferTrainer", REPLAY_CASES, replay_of),
        ("nash_md", f"{named}nash_md.NashMDTrainer", NASH_CASES, lambda *columns: pair_of("nash_md", *columns)),
        ("xpo", f"{named}xpo.XPOTrainer", XPO_CASES, lambda *columns: pair_of("xpo", *columns)),
    ]
    found = []
    with float64():
        for kind, trainer, cases, make in makers:
            found += [{"kind": kind, "trainer": trainer, "trl": trl_version, "case": case, **make(case, inputs, folder)} for case in cases]
        ppo = {"kind": "ppo", "trainer": f"{named}ppo.PPOTrainer", "trl": trl_version}
        return found + [ppo | entry for entry in ppo_losses(inputs, folder)]


def main(path: Path) -> None:
    stored = json.loads(path.read_text())
    inputs = make_inputs()
    assert stored["group_size"] == GROUP
    with tempfile.TemporaryDirectory() as folder:
        write(path, stored | {"removed": entries(inputs | make_more_inputs(inputs), folder)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
