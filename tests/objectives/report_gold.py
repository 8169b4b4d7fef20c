"""The report's row of a teacher with another vocabulary.

Worked by hand: a text of the tokens A1 and A2, one piece of the teacher's one token, with probabilities (3/4, 1/4) of the student's two
words at A1, and 1/2 of the token A2; the teacher says (2/10, 5/10, 3/10) of its three words. So the student's distribution of the piece is
(3/8, 1/8), and by rank |5/10 - 3/8| + |3/10 - 1/8| + 2/10 = 1/2. A second text has no piece.
"""

from __future__ import annotations

import dataclasses
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report_cells import Cell, gap, verdict
from report_differences import BOUND, STENCIL, H
from report_self import identity, stored
from report_texts import TextRow, texts
from report_texts import prepare as prepare_texts

from agentrl.learner.alignment import PIECE
from agentrl.learner.batch import token_batch
from agentrl.learner.foreign import Foreign, held_against
from agentrl.learner.model import Scores
from agentrl.learner.uld import Matched, Side
from agentrl.objectives import get, validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Options = dict[str, Any]
Rows = list[torch.Tensor]


def loss_of(
    options: Mapping[str, Any],
    own: Rows,
    ids: Sequence[Sequence[int]],
    other: Sequence[torch.Tensor],
    other_ids: Sequence[Sequence[int]],
    groups: Sequence[tuple[Sequence[int], Sequence[int]]],
    pairs: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """agentrl's loss of some texts, from the logits of both models at their tokens.

    Args:
        options: of the objective.
        own: [tokens, words] of each text, with gradient.
        ids: [tokens] of each text.
        other: the same of the teacher.
        other_ids: the same of the teacher.
        groups: pieces of both sides' tokens, of each text; none for a text without one.
        pairs: words that are the same: the teacher's and the student's.
    """
    config: Any = validate(options)
    words = get("gold").needs(config).teacher.words
    shift = np.cumsum([0, *(max(mine, default=-1) + 1 for mine, _ in groups)])
    starts, columns, at = [], [], 0
    places: list[list[int]] = [[], []]
    numbers: list[list[int]] = [[], []]
    for text, (mine, theirs) in enumerate(groups):
        for side, piece in enumerate((mine, theirs)):
            before = at if side == 0 else sum(map(len, other_ids[:text]))
            places[side] += [before + place for place in range(len(piece))]
            numbers[side] += [int(shift[text]) + one for one in piece]
        first = [place for place, one in enumerate(mine) if place == 0 or mine[place - 1] != one]
        starts += [at + place for place in first]
        columns.append(np.isin(np.arange(len(ids[text])), first).astype(float))
        at += len(ids[text])
    student = identity(torch.cat(own))
    targets = torch.tensor([one for row in ids for one in row])
    matched = Matched(own=torch.tensor([pair[1] for pair in pairs]), other=torch.tensor([pair[0] for pair in pairs]))
    foreign = Foreign(
        places=torch.tensor(places[0]),
        targets=targets[places[0]],
        groups=torch.tensor(numbers[0]),
        starts=torch.tensor(starts),
        other=Side(
            projection=identity(torch.cat(list(other))),
            places=torch.tensor(places[1]),
            targets=torch.tensor([one for row in other_ids for one in row])[places[1]],
            groups=torch.tensor(numbers[1]),
        ),
        how=words,
        matched=matched if words.hybrid else None,
    )
    apart = held_against(student, foreign)
    rows = texts([len(row) for row in ids])
    prepared = prepare_texts(options, rows)
    credited = [[_with_piece(one, column) for one in unit] for unit, column in zip(prepared.part.active, columns, strict=True)]
    now = student.hidden.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    batch, weights = token_batch(credited, prepared.part, Scores(now, torch.zeros_like(now), divergence=apart), step=0)
    losses = prepared.objective.loss(batch, prepared.config)
    return (losses.loss * weights[losses.per]).sum()


def _with_piece(one: Any, column: np.ndarray) -> Any:
    return dataclasses.replace(one, credit=dataclasses.replace(one.credit, columns={**one.credit.columns, PIECE: column}))


def by_hand() -> Cell:
    own = [torch.tensor([[log(0.75), log(0.25)], [0.0, 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)]
    other = [torch.tensor([[log(0.2), log(0.5), log(0.3)]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)]
    given: Any = (own, [[0, 1], [0]], other, [[1], [0]], [([0, 0], [0]), ([], [])], [])
    plain = loss_of({"name": "gold"}, *given)
    both = loss_of({"name": "gold", "distillation_weight": 2.0, "crossentropy_weight": 0.5}, *given)
    likelihood = (-(log(0.75) + log(0.5)) / 2 + log(2)) / 2
    # Words 0 and 1 are the same: KL(T | S) of (2/10, 5/10) and (3/8, 1/8), weighed by 2/3; the third is alone, by rank 3/10 from nothing.
    hybrid = loss_of({"name": "gold", "hybrid": True, "beta": 0.0}, *given[:-1], [(0, 0), (1, 1)])
    divergence = 0.2 * log(0.2 / 0.375) + 0.5 * log(0.5 / 0.125)
    expected = (0.5 / 2, 2 * 0.5 / 2 + 0.5 * likelihood, (2 / 3 * divergence + 1 / 3 * 0.3) / 2)
    return verdict([gap(found.item(), value) for found, value in zip((plain, both, hybrid), expected, strict=True)])


def given_by_trl() -> tuple[Rows, Any]:
    inputs = stored()["inputs"]
    own = [torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in inputs["logits"]]
    other = [torch.tensor(one["logits"], dtype=torch.float64) for one in inputs["foreign"]]
    groups = [tuple(one["groups"]) for one in inputs["foreign"]]
    return own, (inputs["ids"], other, [one["ids"] for one in inputs["foreign"]], groups, stored()["matched"])


def against_trl() -> Cell:
    gaps = []
    for entry in stored()["gold"]:
        case = entry["case"]
        options: Options = {"name": "gold", "merge": case["merge"], "hybrid": case["hybrid"]}
        options |= {"student_temperature": case["own"], "teacher_temperature": case["other"], "crossentropy_weight": case["nll"]}
        options |= {"beta": case["beta"]} if case["hybrid"] else {}
        own, rest = given_by_trl()
        loss = loss_of(options, own, *rest)
        found = np.concatenate([slope.numpy().ravel() for slope in torch.autograd.grad(loss, own)])
        gaps += [gap(loss.item(), entry["loss"]), gap(found, np.concatenate([np.ravel(rows) for rows in entry["gradient"]]))]
    note = f"{len(stored()['gold'])} batches; its `observed` reads a place too late, and is given rows that are moved"
    return verdict(gaps, note=note)


def differences() -> Cell:
    gaps = []
    start, rest = given_by_trl()
    start = [leaf.detach() for leaf in start[:4]]
    rest = tuple(part[:4] if place < 4 else part for place, part in enumerate(rest))
    for options in ({"name": "gold", "crossentropy_weight": 0.3}, {"name": "gold", "hybrid": True, "merge": "bayesian", "beta": 0.4}):
        leaves = [leaf.clone().requires_grad_() for leaf in start]
        exact = torch.autograd.grad(loss_of(options, leaves, *rest), leaves)
        for which, leaf in enumerate(start):
            rough = np.zeros(leaf.shape)
            for place in np.ndindex(*leaf.shape):
                for size, factor in STENCIL:
                    moved = [one.clone() for one in start]
                    moved[which][place] += size * H
                    rough[place] += factor * loss_of(options, moved, *rest).item() / (12 * H)
            gaps.append(gap(exact[which].numpy(), rough))
    return verdict(gaps, bound=BOUND, note="in the logits, through the kernel")


FOREIGN: tuple[TextRow, ...] = (
    TextRow(
        title="gold",
        options={"name": "gold"},
        hand=by_hand,
        differences=differences,
        trl=against_trl,
        learner={"hybrid": True, "merge": "bayesian", "crossentropy_weight": 0.5},
        section="Distillation",
    ),
)
