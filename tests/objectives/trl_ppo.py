"""PPOTrainer of TRL 1.12, which computes everything inside `train()`: two runs of its statements are cut out and executed here.

The first goes from the padding masks to the whitened advantages, the second from a micro-batch to its loss and statistics. Both are
compiled from TRL's own source, unchanged; they see TRL's module and the names that `train()` would have set before them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import SimpleNamespace

import torch
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_stubs import FLOAT32_METRICS, LENGTHS, PAIR_REWARDS, PROMPT, WIDTH, padded, plain_options, policy_of, with_prompt

EVERY = list(range(len(LENGTHS)))
FULL = [row for row, length in enumerate(LENGTHS) if length == WIDTH]
UNTEMPERED = 1 - 1e-7
"""TRL divides logits by the temperature + 1e-7; this makes that 1."""

# In a row shorter than the batch TRL adds one step after the last token, where the reward lands and the critic is read. With gamma 1
# and a critic that says the reward there (`tail`), the tokens' advantages are those of a reward on the last token.
CASES = [
    {"rows": EVERY, "gamma": 1.0, "lam": 0.95},
    {"rows": EVERY, "gamma": 1.0, "lam": 0.95, "kl_estimator": "k3", "kl_coef": 0.2, "cliprange": 0.1, "cliprange_value": 0.1},
    {"rows": FULL, "gamma": 1.0, "lam": 0.95},
    {"rows": FULL, "gamma": 0.9, "lam": 0.8, "vf_coef": 0.5},
    {"rows": FULL, "gamma": 0.9, "lam": 0.8, "whiten_rewards": True},
]
KEPT = {
    "policy/approxkl_avg": "approxkl",
    "policy/clipfrac_avg": "pg_clipfrac",
    "val/clipfrac_avg": "vf_clipfrac",
    "loss/policy_avg": "pg_loss",
    "loss/value_avg": "vf_loss",
}
"""TRL's metrics that padding does not blur, and its names for them. `approxkl` is still a mean over padding, where it is 0."""

STATISTICS = [f"{name}_stats" for name in ("approxkl", "pg_clipfrac", "pg_loss", "vf_loss", "vf_clipfrac", "entropy", "ratio")]


def statements(first: str, last: str) -> list[ast.stmt]:
    """The run of sibling statements of `train()` from the one that assigns `first` to the last that starts with `last`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(PPOTrainer.train)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            starts = [index for index, inner in enumerate(body) if ast.unparse(inner).startswith(f"{first} = ")]
            ends = [index for index, inner in enumerate(body) if ast.unparse(inner).startswith(last)]
            if starts and ends:
                return body[starts[0] : ends[-1] + 1]
    raise ValueError(f"TRL's train() has no statements from {first!r} to {last!r}: this is made for TRL 1.12.0")


def execute(body: list[ast.stmt], names: dict[str, object]) -> None:
    module = ast.Module(body=body, type_ignores=[])
    exec(compile(module, ppo_trainer.__file__, "exec"), names)


def ppo_losses(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    return [{"case": case, **FLOAT32_METRICS, **loss_of(case, inputs, folder)} for case in CASES]


def loss_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    rows = case["rows"]
    options = {key: value for key, value in case.items() if key != "rows"}
    names = vars(ppo_trainer) | before_update(inputs, rows)
    names["args"] = PPOConfig(**plain_options(folder), temperature=UNTEMPERED, **options)
    execute(statements("response_idxs", "advantages = torch.masked_fill"), names)
    predictions = names["value_predictions"].requires_grad_()
    network = policy_of(inputs)
    blank = predictions.new_zeros(len(rows), len(PROMPT) - 1)
    values = torch.cat([blank, predictions, blank[:, :1]], 1)[..., None]
    names["forward"] = lambda model, ids, pad: (network(ids), values)
    names |= {name: torch.zeros(1, 1, 1) for name in STATISTICS} | dict.fromkeys(("ppo_epoch_idx", "minibatch_idx"), 0)
    names |= {"gradient_accumulation_idx": 0, "micro_batch_inds": torch.arange(len(rows)), "model": None}
    names |= {"accelerator": SimpleNamespace(backward=lambda loss: loss.backward()), "optimizer": FakeOptimizer()}
    execute(statements("mb_advantage", "with torch.no_grad()"), names)
    lengths = [LENGTHS[row] for row in rows]

    def cut(columns: torch.Tensor, extra: int = 0) -> list[list]:
        return [row[: length + extra].tolist() for row, length in zip(columns, lengths, strict=True)]

    return {
        "loss": names["loss"].item(),
        "gradient": cut(network.leaf.grad[rows]),
        "value_gradient": cut(predictions.grad),
        "metrics": {metric: names[name].item() for metric, name in KEPT.items()},
        "scores": [PAIR_REWARDS[row] for row in rows],
        "num_value_positions": int((~names["padding_mask_p1"]).sum()),
        "rewards": cut(names["rewards"], 1),
        "returns": cut(names["returns"], 1),
        "advantages": cut(names["advantages"]),
    }


class FakeOptimizer:
    """Leaves the table as it is, and its gradient."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


def before_update(inputs: dict[str, list], rows: list[int]) -> dict[str, object]:
    """What `train()` has when generation, the reward model and the critic are done."""
    responses = padded(inputs["ids"])[rows]
    scores = torch.tensor(PAIR_REWARDS)[rows]
    lengths = torch.tensor(LENGTHS)[rows]
    tail = (torch.arange(WIDTH)[None] == lengths[:, None]) * scores[:, None]
    return {
        "responses": responses,
        "query_responses": with_prompt(responses),
        "context_length": len(PROMPT),
        "processing_class": SimpleNamespace(pad_token_id=0),
        "sequence_lengths": lengths - 1,
        "scores": scores,
        "logprobs": padded(inputs["sampler"])[rows],
        "ref_logprobs": padded(inputs["reference"])[rows],
        "values": padded(inputs["values"])[rows] + tail,
        "value_predictions": padded(inputs["value_predictions"])[rows] + tail,
    }
