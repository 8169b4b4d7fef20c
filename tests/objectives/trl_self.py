"""Compute what TRL 1.16 gives for self-distillation; run by a Python that has it.

    python tests/objectives/trl_self.py tests/objectives/trl_self.json

Inputs are those of `trl_stubs.py`. Both networks are tables; losses, weights and reductions are the trainers' own lines, on trainers that
hold what those lines read.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from trl import __version__ as trl_version
from trl.experimental.sdft import SDFTTrainer
from trl.experimental.sdft.sdft_trainer import DistillationLogits as SDFTLogits
from trl.experimental.sdpo import SDPOTrainer
from trl.experimental.sdpo.sdpo_trainer import DistillationLogits as SDPOLogits
from trl_stubs import LENGTHS, VOCABULARY, float64, make_inputs, mask, padded, ragged

TAUGHT = [1, 1, 0, 1, 1, 0, 1, 1]
"""Rollouts whose teacher had something to see."""
SDFT_CASES = [
    {"mode": "full_logits", "alpha": 0.5, "topk": None, "tail": False, "clip": 2.0, "skip": 0},
    {"mode": "full_logits", "alpha": 0.0, "topk": None, "tail": False, "clip": None, "skip": 1},
    {"mode": "topk_logits", "alpha": 0.5, "topk": 3, "tail": False, "clip": 1.1, "skip": 0},
    {"mode": "topk_logits", "alpha": 1.0, "topk": 2, "tail": True, "clip": 2.0, "skip": 2},
    {"mode": "sampled_token", "alpha": 1.0, "topk": None, "tail": False, "clip": 1.1, "skip": 0},
]
SDPO_CASES = [
    {"mode": "sampled_token", "alpha": 1.0, "topk": None, "tail": False, "clip": 2.0, "weight": 1.0},
    {"mode": "sampled_token", "alpha": 1.0, "topk": None, "tail": False, "clip": None, "weight": 0.3},
    {"mode": "topk_logits", "alpha": 0.5, "topk": 3, "tail": False, "clip": 2.0, "weight": 0.6},
]


GOLD_CASES = [
    {"merge": "bayesian", "hybrid": False, "beta": 0.5, "own": 1.0, "other": 1.0, "nll": 0.0},
    {"merge": "bayesian", "hybrid": True, "beta": 0.3, "own": 1.0, "other": 1.0, "nll": 0.0},
    {"merge": "observed", "hybrid": True, "beta": 0.0, "own": 1.3, "other": 0.8, "nll": 0.0},
    {"merge": "observed", "hybrid": False, "beta": 0.5, "own": 1.0, "other": 0.7, "nll": 0.0},
]
"""`observed` reads each distribution one place too late there: it is given rows that are moved by one, and so reads the right ones."""
WORDS = 9
"""Of the teacher's vocabulary."""
MATCHED = {1: 2, 3: 0, 8: 5}
"""Words that both have: the teacher's and the student's."""


def pieces_of(length: int, draw: random.Random) -> tuple[list[int], list[int]]:
    """Numbers of the pieces that a student's tokens, and a teacher's of the same text, are part of."""
    own: list[int] = []
    while len(own) < length:
        own += [own[-1] + 1 if own else 0] * min(draw.randrange(1, 3), length - len(own))
    other = [piece for piece in range(own[-1] + 1) for _ in range(draw.randrange(1, 4))]
    return own, other


def gold(case: dict[str, Any], inputs: dict[str, list]) -> dict[str, Any]:
    """ULDLoss text by text, which is its own mean over a batch."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = SimpleNamespace(
        uld_crossentropy_weight=case["nll"],
        uld_distillation_weight=1.0,
        uld_student_temperature=case["own"],
        uld_teacher_temperature=case["other"],
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy=case["merge"],
        uld_use_hybrid_loss=case["hybrid"],
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=case["beta"],
    )
    made = ULDLoss(config)
    made._vocab_mapping, made._teacher_matched_ids = dict(MATCHED), set(MATCHED)
    made.mapping_tensor = torch.full((WORDS,), -1, dtype=torch.long)
    for there, here in MATCHED.items():
        made.mapping_tensor[there] = here
    with float64():
        leaves = [torch.tensor(table).requires_grad_() for table in inputs["logits"]]
        losses = []
        for leaf, ids, foreign in zip(leaves, inputs["ids"], inputs["foreign"], strict=True):
            given = []
            for which, (rows, tokens) in enumerate(((leaf, ids), (torch.tensor(foreign["logits"]), foreign["ids"]))):
                groups = foreign["groups"][which]
                shift = 1 if case["merge"] == "bayesian" else 0
                blank = torch.zeros(2, rows.shape[1])
                logits = torch.cat([blank[: 2 - shift], rows, blank[:shift]])[None]
                labels = torch.tensor([[-100, -100, *tokens]])
                offsets = torch.zeros(1, len(tokens) + 2, 2, dtype=torch.long)
                for at, piece in enumerate(groups):  # tokens within a piece end at bytes that the other side has none at
                    last = at == len(groups) - 1 or groups[at + 1] != piece
                    offsets[0, at + 2, 1] = 100 * (piece + 1) - (0 if last else 90 - 2 * at - which)
                given.append((logits, labels, labels.clamp(min=0), offsets))
            (a, b, c, d), (e, f, g, h) = given
            losses.append(made(a, e, b, f, c, g, d, h))
        loss = torch.stack(losses).mean()
        gradient = torch.autograd.grad(loss, leaves)
    return {"case": case, "loss": loss.item(), "gradient": [one.tolist() for one in gradient]}


def foreign_rows() -> list[dict[str, Any]]:
    """What a teacher of another vocabulary says of each text."""
    draw = random.Random(17)
    found = []
    for length in LENGTHS:
        own, other = pieces_of(length, draw)
        ids = [draw.randrange(WORDS) for _ in other]
        found.append({"groups": [own, other], "ids": ids, "logits": [[draw.gauss(0, 1.2) for _ in range(WORDS)] for _ in other]})
    return found


def trainer_of(kind: type, case: dict[str, Any], logits: Any) -> Any:
    """A trainer that holds what its losses read."""
    made = kind.__new__(kind)
    made.args = SimpleNamespace(
        distillation_mode=case["mode"],
        distillation_alpha=case["alpha"],
        distillation_topk=case["topk"],
        distillation_add_tail=case["tail"],
        distillation_is_clip=case["clip"],
        distillation_weight=case.get("weight", 1.0),
    )
    made.accelerator = SimpleNamespace(gather=lambda value: value)
    made._metrics = {"train": {"self_distillation/policy_loss": []}}
    made._log_self_distillation_metric = lambda mode, value: None
    made._compute_teacher_student_logits = MethodType(lambda self, model, teacher, inputs: logits, made)
    made.use_teacher_server, made.teacher_model = False, None
    made.model = SimpleNamespace(training=True)
    made.current_gradient_accumulation_steps = 1
    made.importance_sampling_level, made.loss_type = "token", "grpo"
    made.epsilon_low, made.epsilon_high = 0.2, 0.2
    return made


def entry(kind: type, case: dict[str, Any], inputs: dict[str, list]) -> dict[str, Any]:
    with float64():
        student = padded_tables(inputs["logits"]).requires_grad_()
        counted = mask()
        if kind is SDFTTrainer:
            seen = counted * (torch.arange(counted.shape[1])[None] >= case["skip"]).long()
            logits = SDFTLogits(
                completion_ids=padded(inputs["ids"]),
                loss_mask=seen,
                student_logits=student,
                teacher_logits=padded_tables(inputs["teacher"]),
            )
        else:
            seen = counted * torch.tensor(TAUGHT)[:, None]
            logits = SDPOLogits(
                completion_ids=padded(inputs["ids"]),
                completion_mask=counted,
                loss_mask=seen,
                student_logits=student,
                teacher_logits=padded_tables(inputs["teacher"]),
            )
        batch = {
            "completion_ids": padded(inputs["ids"]),
            "completion_mask": counted,
            "old_per_token_logps": padded(inputs["sampler"]),
            "advantages": torch.tensor(inputs["advantages"]),
        }
        made = trainer_of(kind, case, logits)
        if kind is SDPOTrainer and case["weight"] == 0:
            raise ValueError("a weight of 0 is GRPO")
        loss = made.compute_loss(made.model, batch)
        (gradient,) = torch.autograd.grad(loss, student)
    return {"case": case, "loss": loss.item(), "gradient": ragged(gradient)}


def padded_tables(rows: list[list[list[float]]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [[0.0] * VOCABULARY] * (width - len(row)) for row in rows], dtype=torch.float64)


def teacher_logits() -> list[list[list[float]]]:
    draw = random.Random(13)
    return [[[draw.gauss(0, 1.2) for _ in range(VOCABULARY)] for _ in range(length)] for length in LENGTHS]


def main(path: str) -> None:
    inputs = make_inputs() | {"teacher": teacher_logits(), "foreign": foreign_rows()}
    found = {
        "trl": trl_version,
        "taught": TAUGHT,
        "inputs": inputs,
        "sdft": [entry(SDFTTrainer, case, inputs) for case in SDFT_CASES],
        "sdpo": [entry(SDPOTrainer, case, inputs) for case in SDPO_CASES],
        "gold": [gold(case, inputs) for case in GOLD_CASES],
        "matched": [list(pair) for pair in sorted(MATCHED.items())],
    }
    Path(path).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
