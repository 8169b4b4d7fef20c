"""A step's gradients by transformers' own forward pass over whole unpacked rows: no packs, no shared starts, no weights, no parts.

What it has in common with the learner is the objective's own functions, which tests of theirs hold to the papers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from agentrl import objectives
from agentrl.objectives import Credit, GroupSignals, MemberSignals, TokenBatch
from agentrl.objectives.signals import StepColumns
from agentrl.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.learner import Learner
    from agentrl.records import Group, Rollout

MAX_TOKENS = 256
"""sampling.max_tokens of the tests' run files."""


@dataclasses.dataclass
class Scored:
    """The trained tokens of one rollout, row after row, as the models score them."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor | None
    sampler: np.ndarray
    turn: np.ndarray
    teacher: torch.Tensor
    """The teacher's log-probs, where there is one."""
    divergence: torch.Tensor


class PlainModels:
    """Policy and critic by transformers alone, with the weights that a learner has now."""

    def __init__(self, folder: str, learner: Learner) -> None:
        # Not eager attention: its softmax is in float32.
        self.policy = _read(folder)
        self.policy.load_state_dict(learner.policy.base.state_dict())
        self.critic: Any = None
        self.head: torch.nn.Linear | None = None
        self.teacher = _read(str(learner.config.teacher[0].model)) if learner.config.teacher else None
        if learner.models.critic is not None:
            whole = _read(folder)
            self.critic = whole.get_decoder()
            self.critic.load_state_dict(learner.models.critic.decoder.state_dict())
            self.head = _copied(learner.models.critic.head)
        elif learner.policy.value_head is not None:
            self.critic = self.policy.get_decoder()
            self.head = _copied(learner.policy.value_head)

    def score(self, rollout: Rollout) -> Scored:
        """With gradients."""
        logprobs, entropies, values, sampler, turns = [], [], [], [], []
        taught, divergences = [], []
        for row in rows_of(rollout):
            ids = torch.from_numpy(row.ids.astype(np.int64))
            places = np.flatnonzero(row.trained)
            hidden = self.policy.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            table = torch.log_softmax(self.policy.get_output_embeddings()(hidden), -1)[places - 1]
            logprobs.append(table.gather(1, ids[places][:, None])[:, 0])
            entropies.append(-(table.exp() * table).sum(1))
            if self.teacher is not None:
                told = torch.log_softmax(self.teacher(input_ids=ids[None], use_cache=False).logits[0].detach(), -1)[places - 1]
                taught.append(told.gather(1, ids[places][:, None])[:, 0])
                divergences.append((table.exp() * (table - told)).sum(1))
            if self.head is not None:
                own = self.critic(input_ids=ids[None], use_cache=False).last_hidden_state[0]
                values.append(self.head(own)[places - 1, 0])
            sampler.append(row.sampler_logprobs[places])
            turns.append(row.turn[places])
        return Scored(
            torch.cat(logprobs),
            torch.cat(entropies),
            torch.cat(values) if values else None,
            np.concatenate(sampler),
            np.concatenate(turns),
            torch.cat(taught or [torch.zeros(0)]),
            torch.cat(divergences or [torch.zeros(0)]),
        )

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the learner's names: `model.*`, `value_head.*`, and of a critic of its own `critic.*`."""
        found = {f"model.{name}": one.grad for name, one in self.policy.named_parameters()}
        if self.head is not None:
            own = self.critic is not self.policy.get_decoder()
            found |= {f"{'critic.head' if own else 'value_head'}.{name}": one.grad for name, one in self.head.named_parameters()}
            if own:
                found |= {f"critic.decoder.{name}": one.grad for name, one in self.critic.named_parameters()}
        return {name: grad for name, grad in found.items() if grad is not None}


def plain_gradients(
    folder: str, learner: Learner, groups: Sequence[Group], objective: dict[str, Any], chosen: Sequence[int] | None = None
) -> dict[str, torch.Tensor]:
    """The gradient of a step in which every rollout is scorable, as the learner's weights are now.

    Args:
        folder: of the model that the learner began with, which is its reference.
        learner: for its weights.
        groups: of the step.
        objective: as in a run file.
        chosen: rollouts of the optimizer step, counted over the groups; all of them by default.
    """
    found, options = objectives.get(str(objective["name"])), objectives.validate(objective)
    needs = found.needs(options)
    models = PlainModels(folder, learner)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [models.score(rollout) for rollout in rollouts]
    reference = [one.logprobs.detach() for one in scored]
    if needs.reference:
        at_first = PlainModels.__new__(PlainModels)
        at_first.policy, at_first.critic, at_first.head, at_first.teacher = _read(folder), None, None, None
        reference = [at_first.score(rollout).logprobs.detach() for rollout in rollouts]
    signals, credits_ = [], []
    place = 0
    for group in groups:
        members = []
        for rollout in group.rollouts:
            members.append(_member(rollout, scored[place], reference[place], needs, len(group.rollouts)))
            place += 1
        half = len(members) // 2
        signals.append(
            GroupSignals(
                rewards=np.array(group.scores, dtype=np.float64),
                reference_kl=np.array([float((one.sampler_logprobs - one.reference_logprobs).sum()) for one in members]),
                members=tuple(members),
                size=len(members),
                preferences={(one, one + half): chance for one, chance in enumerate(group.preferences) if chance is not None},
            )
        )
    given = [one if isinstance(one, Credit) else Credit(advantages=one) for one in found.advantages(signals, options)]
    ends = np.cumsum([len(group.rollouts) for group in groups]).tolist()
    for credit, group, end in zip(given, groups, ends, strict=True):
        credits_ += [(credit, member, end - len(group.rollouts)) for member in range(len(group.rollouts))]
    trained = [place for place, (credit, member, _) in enumerate(credits_) if credit.trained is None or credit.trained[member]]
    columns = _selected(found, options, trained, scored, credits_) if needs.start else {}
    counted = [place for place in trained if chosen is None or place in chosen]
    batch = _batch(counted, scored, reference, credits_, columns, needs)
    losses = found.loss(batch, options)
    lengths = [len(scored[place].logprobs) for place in counted]

    def share(values: torch.Tensor) -> torch.Tensor:
        """The tokens' losses as the normalization says, rollout by rollout."""
        rows = values.split(lengths)
        return {
            "sequence_mean": lambda: sum(row.mean() for row in rows) / len(rows),
            "token_mean": lambda: values.sum() / len(values),
            "sequence_sum": lambda: values.sum() / len(rows),
            "constant": lambda: values.sum() / (len(rows) * MAX_TOKENS),
        }[found.normalization(options)]()

    total = share(losses.loss) if losses.per == "token" else losses.loss.mean()
    for term in losses.terms.values():
        total = total + share(term)
    total.backward()
    return models.gradients()


def _read(folder: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")


def _copied(head: torch.nn.Linear) -> torch.nn.Linear:
    twin = torch.nn.Linear(head.in_features, 1, dtype=head.weight.dtype)
    twin.load_state_dict(head.state_dict())
    return twin


def _member(rollout: Rollout, scored: Scored, reference: torch.Tensor, needs: Any, size: int) -> MemberSignals:
    return MemberSignals(
        member=rollout.member,
        rival=needs.rival is not None and rollout.member >= size // 2,
        truncated=rollout.ending == "truncated",
        turn_rewards=np.array([turn.reward for turn in rollout.turns]),
        turn=scored.turn,
        sampler_logprobs=scored.sampler,
        start_logprobs=scored.logprobs.detach().numpy(),
        start_entropy=scored.entropy.detach().numpy(),
        reference_logprobs=reference.numpy(),
        teacher_logprobs=scored.teacher.numpy(),
        values=None if scored.values is None else scored.values.detach().numpy(),
    )


def _advantages(credit: Credit, member: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(credit.advantages[member], dtype=np.float64), (length,))


def _selected(found: Any, options: Any, trained: list[int], scored: list[Scored], credited: list[Any]) -> dict[str, dict[int, np.ndarray]]:
    lengths = [len(scored[place].logprobs) for place in trained]
    step = StepColumns(
        advantages=np.concatenate([_advantages(*credited[place][:2], length) for place, length in zip(trained, lengths, strict=True)]),
        sampler_logprobs=np.concatenate([scored[place].sampler for place in trained]).astype(np.float64),
        start_logprobs=np.concatenate([scored[place].logprobs.detach().numpy() for place in trained]),
        start_entropy=np.concatenate([scored[place].entropy.detach().numpy() for place in trained]),
        rollout=np.repeat(np.arange(len(trained)), lengths),
        seed=(0, 0),
    )
    ends = np.cumsum(lengths)[:-1]
    return {name: dict(zip(trained, np.split(values, ends), strict=True)) for name, values in found.select(step, options).items()}


def _batch(
    counted: list[int], scored: list[Scored], reference: list[torch.Tensor], credited: list[Any], columns: Any, needs: Any
) -> TokenBatch:
    """All rollouts of the optimizer step as one batch."""
    own = [scored[place] for place in counted]
    lengths = [len(one.logprobs) for one in own]
    advantages = [_advantages(*credited[place][:2], length) for place, length in zip(counted, lengths, strict=True)]
    pairs = [(counted.index(first + a), counted.index(first + b)) for first, a, b in _pairs(counted, credited)]
    returns = [credited[place][0].returns[credited[place][1]] for place in counted] if needs.critic is not None else None
    several = needs.start or needs.passes * needs.minibatches > 1
    values = torch.cat([one.values for one in own]) if needs.critic is not None else None  # type: ignore[misc]
    start = torch.cat([one.logprobs.detach() for one in own])
    size = {id(credit): len(credit.advantages) for credit, _, _ in credited}
    return TokenBatch(
        logprobs=torch.cat([one.logprobs for one in own]),
        sampler_logprobs=torch.from_numpy(np.concatenate([one.sampler for one in own])).double(),
        advantages=torch.from_numpy(np.concatenate(advantages)),
        rollout=torch.from_numpy(np.repeat(np.arange(len(own)), lengths)),
        num_rollouts=len(own),
        rollout_advantages=torch.tensor([float(one[0]) for one in advantages], dtype=torch.float64),
        reference_logprobs=torch.cat([reference[place] for place in counted]) if needs.reference else None,
        teacher_logprobs=torch.cat([one.teacher for one in own]),
        divergence=torch.cat([one.divergence for one in own]),
        start_logprobs=start if several else None,
        entropy=torch.cat([one.entropy for one in own]),
        values=values,
        start_values=None if values is None else values.detach(),
        returns=None if returns is None else torch.from_numpy(np.concatenate(returns)),
        staleness=torch.zeros(len(start), dtype=torch.float64),
        columns={name: torch.from_numpy(np.concatenate([by[place] for place in counted])) for name, by in columns.items()},
        rival=torch.tensor([needs.rival is not None and credited[at][1] >= size[id(credited[at][0])] // 2 for at in counted]),
        chosen=torch.tensor([pair[0] for pair in pairs]) if needs.pairs else None,
        rejected=torch.tensor([pair[1] for pair in pairs]) if needs.pairs else None,
    )


def _pairs(counted: list[int], credited: list[Any]) -> list[tuple[int, int, int]]:
    """(place of the group's first rollout, chosen member, rejected member) of each pair, once."""
    seen, found = set(), []
    for place in counted:
        credit, _, first = credited[place]
        if first not in seen:
            seen.add(first)
            found += [(first, a, b) for a, b in credit.pairs]
    return found
