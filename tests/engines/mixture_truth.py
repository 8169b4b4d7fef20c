"""Two models in one engine, and what their mixture should be: transformers' own forward passes, without a cache."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentrl.records import Version

if TYPE_CHECKING:
    from agentrl.engines.protocol import Completion


def mixture_of(policy: Any, reference: Any, ids: np.ndarray, share: float, temperature: float = 1.0) -> np.ndarray:
    """[tokens, vocabulary] float64 log-probs of the token after each of `ids`, under two transformers modules."""
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens, use_cache=False).logits[0].double() for model in (policy, reference))
    return torch.log_softmax(((1 - share) * ours + share * theirs) / temperature, -1).numpy()


def error_of(completion: Completion, prompt: np.ndarray, policy: Any, reference: Any, share: float, temperature: float = 1.0) -> float:
    """Greatest absolute difference of a completion's log-probs, in nats."""
    scores = mixture_of(policy, reference, np.concatenate([prompt, completion.ids]), share, temperature)
    sampled = scores[np.arange(len(completion.ids)) + len(prompt) - 1, completion.ids]
    return float(np.abs(sampled - completion.logprobs).max())


class Counting:
    """A decoder that counts the tokens it is asked to compute."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.tokens = 0

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def forward(self, step):
        self.tokens += len(step.ids)
        return self._decoder.forward(step)


class Pair:
    """A policy that may be changed and a reference, in one scheduler; both count what they compute."""

    def __init__(self, policy, reference, **options):
        loaded = (dataclasses.replace(model.loaded, decoder=Counting(model.loaded.decoder)) for model in (policy, reference))
        self.policy, self.reference = (
            dataclasses.replace(model, loaded=one) for model, one in zip((policy, reference), loaded, strict=True)
        )
        self.scheduler = self.policy.scheduler(reference=self.reference.loaded, **options)

    @property
    def computed(self):
        """Tokens that policy and reference computed."""
        return tuple(model.loaded.decoder.tokens for model in (self.policy, self.reference))

    def error(self, prompt, completion, share, temperature=1.0):
        """Greatest absolute difference of a completion's log-probs from the mixture's as the weights are, in nats."""
        return error_of(completion, prompt, self.policy.reference, self.reference.reference, share, temperature)

    def publish(self, step, names=None):
        """New weights for the policy, or for some of its tensors, there and in transformers."""
        generator = torch.Generator().manual_seed(step)
        module = self.policy.reference
        state = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in module.state_dict().items()
            if names is None or name in names
        }
        if names is None and module.config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]

        def load():
            weights = self.policy.loaded.decoder.weights
            for name, tensor in state.items():
                weights.bindings[name].write(tensor)
            weights.refresh()
            return "checksum"

        self.scheduler.replace_weights(Version(step=step), load)
        module.load_state_dict(state, strict=False)
