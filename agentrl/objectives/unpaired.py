"""What the objectives over single texts with a label share: labels as advantages, mismatched completions, and the field's metrics."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.examples import Text
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from agentrl.examples import Example
    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals


def labels_as_credit(groups: Sequence[GroupSignals], parts: Mapping[str, float] | None = None) -> list[Credit]:
    """Advantages of 1 for good texts and -1 for bad ones; only the first text of a row is trained.

    Each text is told its `balance`, with which a mean over all texts is the good ones' mean - the bad ones'.

    Args:
        groups: of the whole step.
        parts: what else each text is told.
    """
    good = np.array([group.rewards[0] > 0.5 for group in groups])
    there = np.array([_counts(group) for group in groups], dtype=bool)
    totals = {kind: int((there & (good == kind)).sum()) for kind in (True, False)}
    result = []
    for group, own in zip(groups, good.tolist(), strict=True):
        size = len(group.rewards)
        balance = (1 if own else -1) * sum(totals.values()) / totals[own] if all(totals.values()) else np.nan
        told = {name: np.full(size, value) for name, value in {"balance": balance, **(parts or {})}.items()}
        trained = np.arange(size) == 0
        result.append(Credit(advantages=np.where(trained, 1.0 if own else -1.0, 0.0), trained=trained, parts=told))
    return result


def _counts(group: GroupSignals) -> bool:
    """Whether the text has a trained token."""
    return not group.members or len(group.members[0].sampler_logprobs) > 0


def with_mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each example with a second text: its prompt, and the completion of another example whose prompt differs, if there is one.

    Who lends to whom depends on the examples' tokens alone and not on their order: they form a ring by a hash, and each borrows from the
    next one that will do. A borrowed completion is cut where it would make a text longer than any of the step's own.
    """
    if len(examples) < 2:
        return list(examples)
    ring = sorted(range(len(examples)), key=lambda index: _hash(examples[index].texts[0]))
    prompts = [_prompt(example) for example in examples]
    longest = max(len(example.texts[0].ids) for example in examples)
    result = list(examples)
    for place, index in enumerate(ring):
        others = (ring[(place + step) % len(ring)] for step in range(1, len(ring)))
        lender = next((other for other in others if prompts[other] != prompts[index]), ring[(place + 1) % len(ring)])
        result[index] = _borrowing(examples[index], examples[lender].texts[0], longest)
    return result


def _hash(text: Text) -> bytes:
    return hashlib.blake2b(text.ids.tobytes() + text.trained.tobytes(), digest_size=16).digest()


def _prompt(example: Example) -> bytes:
    text = example.texts[0]
    return text.ids[: text.prompt_length].tobytes()


def _borrowing(example: Example, lender: Text, longest: int) -> Example:
    own = example.texts[0]
    ids = np.concatenate([own.ids[: own.prompt_length], lender.ids[lender.prompt_length :]])[:longest]
    trained = np.concatenate([np.zeros(own.prompt_length, dtype=bool), lender.trained[lender.prompt_length :]])[:longest]
    trained[0] = False
    text = Text(ids=ids, trained=trained, prompt_length=own.prompt_length)
    # What was computed before of the row's own text does not cover the new one.
    return replace(example, texts=(own, text), rewards=(example.rewards[0], 0.0), reference_logprobs=None)


def label_metrics(batch: TokenBatch, rewards: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Metrics of all texts, and of the good ones or the bad ones alone, with NaN for the others.

    Args:
        batch: logprobs, mean_logits [tokens]; rollout_advantages; parts `balance`.
        rewards: [rollouts] implicit rewards, beta included.

    Returns: [rollouts] `rewards/margins`, where a step has both kinds; [rollouts] `rewards/{chosen,rejected}`, `logps/{chosen,rejected}`,
    [tokens] `logits/{chosen,rejected}`.
    """
    rewards, sums = rewards.detach(), batch.sum_by_rollout(batch.logprobs.detach())
    some = {"rewards/margins": rewards * batch.parts["balance"]}
    nan = float("nan")
    for kind, own in (("chosen", batch.rollout_advantages > 0), ("rejected", batch.rollout_advantages < 0)):
        some |= {f"rewards/{kind}": rewards.where(own, nan), f"logps/{kind}": sums.where(own, nan)}
        if batch.mean_logits is not None:
            some[f"logits/{kind}"] = batch.mean_logits.detach().where(own[batch.rollout], nan)
    return {"rewards/mean": rewards}, some
