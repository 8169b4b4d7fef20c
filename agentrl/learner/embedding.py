"""What a model makes of prompts: the mean of the last hidden states of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.learner.packing import pack
from agentrl.learner.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.learner.model import Policy


@torch.no_grad()
def embeddings(policy: Policy, prompts: Sequence[np.ndarray], device: torch.device, *, tokens: int, ragged: bool) -> np.ndarray:
    """[prompts, size] float32.

    Args:
        policy: the model, with its adapter if that is on.
        prompts: [length] ids each.
        device: where the model is.
        tokens: of a forward pass, about; a longer prompt has one of its own.
        ragged: the attention kernel takes segments of any lengths.
    """
    found: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    for prompt in prompts:
        if batch and sum(map(len, batch)) + len(prompt) > tokens:
            found.append(_means(policy, batch, device, ragged=ragged))
            batch = []
        batch.append(prompt)
    if batch:
        found.append(_means(policy, batch, device, ragged=ragged))
    return np.concatenate(found)


def _means(policy: Policy, prompts: Sequence[np.ndarray], device: torch.device, *, ragged: bool) -> np.ndarray:
    packed = pack([_whole(prompt, place) for place, prompt in enumerate(prompts)], device, ragged=ragged)
    hidden = policy(packed, project=True).hidden.float()
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    owner = torch.repeat_interleave(torch.arange(len(prompts), device=device), lengths)
    sums = hidden.new_zeros(len(prompts), hidden.shape[1]).index_add(0, owner, hidden)
    return (sums / lengths[:, None]).cpu().numpy()  # type: ignore[no-any-return]


def _whole(prompt: np.ndarray, group: int) -> Sample:
    """A row whose every state is read."""
    nothing = np.zeros(len(prompt), dtype=np.float32)
    return Sample(
        group=group,
        rows=(prompt.astype(np.int32),),
        sources=(np.arange(len(prompt)),),
        targets=np.zeros(len(prompt), dtype=np.int64),
        sampler_logprobs=nothing,
        masked=False,
    )
