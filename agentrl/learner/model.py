"""The policy as the learner trains it: a causal language model whose forward pass takes a pack and gives log-probs.

Any model of transformers will do whose attention goes through `AttentionInterface` and whose head is a linear layer, optionally
scaled or soft-capped. What a model really computes is checked at the start on a tiny input (`check_packing`), not looked up by name.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from agentrl.errors import ConfigError
from agentrl.learner.adapters import plain_layer
from agentrl.learner.attention import ATTENTION, selected
from agentrl.learner.lessons import taught
from agentrl.learner.logprobs import Asked, Head, token_logprobs
from agentrl.learner.packing import pack
from agentrl.learner.projection import Projection
from agentrl.learner.samples import Sample
from agentrl.learner.scorer import padding_token, scores_of
from agentrl.learner.smoothing import uniform_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peft import PeftModel

    from agentrl.learner.lessons import Lessons
    from agentrl.learner.packing import Pack

Output = Literal["tokens", "score", "labels"]

MAX_PACKED_DIFFERENCE = 1e-3
"""Nats that a packed row's log-probs may differ from its own alone, in float32. Rounding stays below 1e-5 in any sane model; a row that
sees its neighbour differs by tenths."""


class Scores(NamedTuple):
    """What a forward pass says of the trained tokens of a pack, [trained] each, in float32 or better."""

    logprobs: torch.Tensor
    """Nats."""
    entropy: torch.Tensor
    """Nats, of the distribution that each token was drawn from."""
    values: torch.Tensor | None = None
    """Of the states before the tokens, where the policy has a value head."""
    correct: torch.Tensor | None = None
    """Bool: no token was more likely than the target."""
    mean_logits: torch.Tensor | None = None
    """Over the vocabulary, without gradient, where they were asked for."""
    collision: torch.Tensor | None = None
    """log sum p^2 of each distribution, without gradient, where it was asked for."""
    divergence: torch.Tensor | None = None
    """From a teacher's distribution, where there is a teacher."""
    outputs: torch.Tensor | None = None
    """[trained, k] of a head that gives no log-probs."""
    uniform_logprobs: torch.Tensor | None = None
    """Mean over the vocabulary, where it was asked for."""


class Policy(torch.nn.Module):
    """A causal language model that scores the trained tokens of a pack.

    The head's weight is used inside this forward pass, so that the hooks of DDP and FSDP around it see every parameter.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, head: Head, dtype: torch.dtype, *, values: bool = False, output: Output = "tokens"
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.dtype = dtype
        """Of the forward pass; the parameters' own is the master type."""
        self.value_head = value_head(self.base) if values else None
        self.asked = Asked()
        self.output = output
        """What its head gives: log-probs of tokens, or a classifier's outputs."""

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, with adapters inside where there are any."""
        model = self.model
        return model if isinstance(model, PreTrainedModel) else cast("PreTrainedModel", model.get_base_model())

    @property
    def padding(self) -> int | None:
        """The token that a head of scores passes over at the end of a text; None where there is none, or another head."""
        return padding_token(self.base) if self.output == "score" else None

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained, and not the model's own parameters."""
        return not isinstance(self.model, PreTrainedModel)

    def forward(self, packed: Pack, lessons: Lessons | None = None, *, project: bool = False) -> Scores | Projection:
        """Score the targets of a pack.

        Args:
            packed: rows of some samples.
            lessons: what teachers say of the same targets, to be held against this model's distributions.
            project: give the hidden states before the targets and the head, and score nothing.
        """
        base = self.base
        half = self.dtype == torch.bfloat16
        with torch.autocast(packed.ids.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            tokens = {"input_ids": packed.ids[None]} if packed.noise is None else {"inputs_embeds": self._noisy(packed.ids, packed.noise)}
            out = base.get_decoder()(**tokens, position_ids=packed.positions[None], use_cache=False, segments=packed.segments)
        hidden = selected(out.last_hidden_state[0], packed.sources, shared=packed.segments.shared)
        if self.output != "tokens":
            return scores_of(base, hidden)
        layer = output_layer(base)
        kind = torch.bfloat16 if half else hidden.dtype
        bias: torch.Tensor | None = layer.bias
        own = Projection(hidden=hidden.to(kind), weight=layer.weight.to(kind), bias=None if bias is None else bias.to(kind), head=self.head)
        if project:
            return own
        found = token_logprobs(own.hidden, own.weight, own.bias, packed.targets, self.head, self.asked)
        values = None if self.value_head is None else self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0]
        divergence = None if lessons is None else taught(own, lessons)
        uniform = uniform_logprobs(own, packed.targets, found.logprobs) if self.asked.uniform else None
        scores = Scores(found.logprobs, found.entropy, values, found.correct, found.mean_logits, found.collision, divergence)
        return scores if uniform is None else scores._replace(uniform_logprobs=uniform)

    @property
    def width(self) -> int:
        """Of an embedding."""
        embeddings: Any = self.base.get_input_embeddings()
        return int(embeddings.weight.shape[1])

    def _noisy(self, ids: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """[1, tokens, width] embeddings with noise."""
        embedded: torch.Tensor = self.base.get_input_embeddings()(ids[None])
        return embedded + noise.to(embedded.dtype)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The model that the adapter started from."""
        with cast("PeftModel", self.model).disable_adapter():
            yield


def value_head(model: PreTrainedModel) -> torch.nn.Linear:
    """A linear layer from hidden states to values, all 0 at the start: the first advantages are then the rewards themselves."""
    like = output_layer(model).weight
    head = torch.nn.Linear(like.shape[1], 1, dtype=like.dtype, device=like.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def output_layer(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer that makes logits of hidden states; raises `ConfigError` where it is not a plain linear one."""
    layer: Any = plain_layer(model.get_output_embeddings())
    if hasattr(layer, "base_layer"):
        raise ConfigError(
            f"the output layer of {type(model).__name__} has an adapter, and its log-probs are computed from one matrix: leave it out of "
            "learner.lora.target_modules"
        )
    if not isinstance(layer, torch.nn.Linear):
        raise ConfigError(f"the output layer of {type(model).__name__} is a {type(layer).__name__}; only a linear one can be trained")
    return layer


@torch.no_grad()
def check_packing(policy: Policy) -> None:
    """Compare a pack of tiny rows with transformers' own forward pass over each row alone; raises `ConfigError` where they differ.

    It finds attention or recurrence that ignores the rows' boundaries, heads that do more than the learner knows of, and dropout.
    """
    base = policy.base
    device = next(base.parameters()).device
    vocabulary = output_layer(base).weight.shape[0]
    draw = np.random.default_rng(0).integers(0, vocabulary, size=(4, 9), dtype=np.int32)
    rows = [draw[0, :9], draw[1, :6], np.concatenate([draw[0, :4], draw[2, :3]]), draw[3, :9]]
    samples = [_whole_row(row, group) for row, group in zip(rows, (0, 1, 0, 2), strict=True)]
    samples.sort(key=lambda sample: sample.group)
    exact = Policy(policy.model, policy.head, base.dtype)
    packed = exact(pack(samples, device)).logprobs
    alone = torch.cat([_alone(base, sample, policy.head) for sample in samples])
    difference = float((packed - alone).abs().max())
    if not difference <= MAX_PACKED_DIFFERENCE:
        raise ConfigError(
            f"{type(base).__name__} scores rows in a pack differently from the same rows alone, by {difference:.3g} nats: a layer of it "
            "looks across the rows' boundaries, or its head does more than scale and soft-cap; such a model cannot be trained here"
        )


@torch.no_grad()
def plain_logprobs(policy: Policy, ids: Sequence[int]) -> list[float]:
    """Log-probs of `ids[1:]` in nats at temperature 1, by the model's own forward pass, its adapter included."""
    row = np.asarray(ids, dtype=np.int32)
    return _alone(policy.base, _whole_row(row, 0), Head()).double().cpu().tolist()


def _whole_row(row: np.ndarray, group: int) -> Sample:
    return Sample(
        group=group,
        rows=(row[:-1],),
        sources=(np.arange(len(row) - 1),),
        targets=row[1:].astype(np.int64),
        sampler_logprobs=np.zeros(len(row) - 1, dtype=np.float32),
        masked=False,
    )


def _alone(base: PreTrainedModel, sample: Sample, head: Head) -> torch.Tensor:
    """[targets] log-probs by the model's own forward pass and head, with transformers' plain attention."""
    device = base.device
    ids = torch.from_numpy(sample.rows[0].astype(np.int64)).to(device)
    base.set_attn_implementation("eager")
    try:
        logits: Any = base(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        base.set_attn_implementation(ATTENTION)
    targets = torch.from_numpy(sample.targets).to(device)
    return torch.log_softmax(logits / head.temperature, -1).gather(1, targets[:, None])[:, 0]
