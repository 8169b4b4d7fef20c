"""What turns token ids into logits for the engine: a fast path for common architectures, or any transformers model.

Which one serves is decided by measurement at the start: the fast path must reproduce the transformers module's logits on a probe, and
so must the generic path; a model that neither reproduces is refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from agentrl.engines.decoder_fast import FastDecoder
from agentrl.engines.decoder_generic import GenericDecoder
from agentrl.engines.families import Unsupported
from agentrl.engines.kv import KVCache
from agentrl.engines.step import Segment, Step, plan_step
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.config_engine import EngineConfig
    from agentrl.engines.kv import LayerShape
    from agentrl.engines.weights import Weights

LONGEST_CONTEXT = 4096
"""Default of `context_length` for models that allow more."""
LONGEST_PROBE = 128
"""Most tokens of the probe; a longer sliding window is not crossed by it."""

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """A model that decodes into the engine's own KV cache."""

    @property
    def shapes(self) -> Sequence[LayerShape]:
        """What each layer caches."""
        ...

    @property
    def weights(self) -> Weights:
        """What it computes with."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids that it scores."""
        ...

    def forward(self, step: Step) -> torch.Tensor:
        """Float32 logits [wanted, vocabulary], the caller's to overwrite; puts keys and values into the cache."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to decode."""

    decoder: Decoder
    description: str
    """`fast`, or `generic` with the reason."""
    model_type: str
    context_length: int
    device: torch.device
    dtype: torch.dtype


def load_decoder(model_dir: str, config: EngineConfig) -> Loaded:
    """Load a model folder (or Hub name) and choose its decoder. Raises `ConfigError` for a model that the engine cannot serve exactly."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    device, dtype = _device(config.device), config.dtype
    torch_dtype = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda") else torch.float32
    try:
        model_config = AutoConfig.from_pretrained(model_dir)
        context_length = _context_length(model_config, config.context_length)
        loaded: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch_dtype, output_loading_info=True)
    except ConfigError:
        raise
    except Exception as error:  # somebody else's files: each format has its own errors, and all of them mean this
        raise ConfigError(f"model {model_dir!r} does not load as a causal language model: {type(error).__name__}: {error}") from error
    model, loading = loaded
    if loading["missing_keys"]:  # transformers draws them at random and goes on
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError(f"model {model_dir!r} has no weights for tensors of a {type(model).__name__}, such as {missing}")
    model = model.eval().requires_grad_(False).to(device)
    decoder, description = choose_decoder(model, context_length)
    if description != "fast":
        _log.warning("the embedded engine runs transformers' own modules: %s", description)
    return Loaded(
        decoder=decoder,
        description=description,
        model_type=model_config.model_type,
        context_length=context_length,
        device=device,
        dtype=torch_dtype,
    )


def load_reference(model_dir: str, config: EngineConfig, policy: Loaded) -> Loaded:
    """Load the frozen model whose logits are mixed with the policy's. Raises `ConfigError` also where the two do not fit together."""
    try:
        loaded = load_decoder(model_dir, config)
    except ConfigError as error:
        raise ConfigError(f"the reference model: {error}") from error
    ours, theirs = policy.decoder.vocab_size, loaded.decoder.vocab_size
    if ours != theirs:
        raise ConfigError(
            f"the reference model {model_dir!r} scores {theirs} ids and the policy {ours}: their logits cannot be mixed; "
            "take a reference with the policy's own vocabulary, such as the model that training starts from"
        )
    if loaded.context_length < policy.context_length:
        raise ConfigError(
            f"the reference model {model_dir!r} allows {loaded.context_length} tokens of context and the policy has "
            f"{policy.context_length}; set engine.context_length={loaded.context_length}"
        )
    return loaded


def choose_decoder(model: Any, context_length: int) -> tuple[Decoder, str]:
    """The fastest decoder that reproduces a transformers model, and what it is."""
    with torch.inference_mode():
        probe = Probe.of(model, context_length)
        try:
            fast = FastDecoder(model, context_length)
            probe.check(fast)
        except Unsupported as reason:
            try:
                generic = GenericDecoder(model)
                probe.check(generic)
            except Unsupported as error:
                name = type(model).__name__
                raise ConfigError(
                    f"the embedded engine cannot serve {name} exactly: {error}; choose another model or another engine"
                ) from error
            return generic, f"generic: {reason}"
        return fast, "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Sequences, and the logits that the transformers module gives on them."""

    sequences: list[np.ndarray]
    logits: list[torch.Tensor]
    """[tokens, vocabulary] float32 of each sequence."""
    tolerance: float
    """Greatest absolute difference, in units of the greatest absolute logit (at least 1)."""

    @staticmethod
    def of(model: Any, context_length: int) -> Probe:
        """Two sequences; one crosses the sliding window where it is short enough."""
        window = getattr(model.config, "sliding_window", None) or 0
        length = min(context_length, window + 24 if window + 24 <= LONGEST_PROBE else 40)
        random = np.random.default_rng(0)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        sequences = [random.integers(0, vocabulary, size=size).astype(np.int32) for size in (length, max(2, length // 3))]
        logits = []
        for ids in sequences:
            result = model(input_ids=torch.from_numpy(ids[None].astype(np.int64)).to(model.device), use_cache=False)
            logits.append(result.logits[0].float())
        return Probe(sequences=sequences, logits=logits, tolerance=2e-4 if model.dtype == torch.float32 else 0.1)

    def check(self, decoder: Decoder) -> None:
        """Replay the sequences as the engine would: joining, extending a prefix, decoding. Raises `Unsupported` on a difference."""
        device, dtype = self.logits[0].device, decoder.weights.dtype
        longest = max(len(ids) for ids in self.sequences)
        cache = KVCache(decoder.shapes, num_slots=2, context_length=longest + 1, dtype=dtype, device=device)
        tokens = np.zeros((2, longest), dtype=np.int32)
        for slot, ids in enumerate(self.sequences):
            tokens[slot, : len(ids)] = ids
            cache.open(slot, longest)
        lengths = np.array([len(ids) for ids in self.sequences])
        for start, stop in ((0, lengths // 2), (lengths // 2, lengths - 1)):
            begins = np.broadcast_to(start, lengths.shape)
            segments = [Segment(slot=slot, start=int(begins[slot]), stop=int(stop[slot])) for slot in range(2) if stop[slot] > begins[slot]]
            if segments:
                step, slots = plan_step(cache, tokens, lengths, [0] * len(cache.pools), segments, {})
                self._compare(decoder.forward(step), slots, stop - 1)
        step, slots = plan_step(cache, tokens, lengths - 1, [len(pool.slots) for pool in cache.pools], [], {})
        self._compare(decoder.forward(step), slots, lengths - 1)

    def _compare(self, logits: torch.Tensor, slots: np.ndarray, at: np.ndarray) -> None:
        for row, slot in zip(logits, slots, strict=True):
            expected = self.logits[slot][at[slot]]
            if expected.shape != row.shape:
                raise Unsupported(f"logits have {len(row)} entries; transformers gives {len(expected)}")
            difference = (row - expected).abs().max().item()
            if not difference <= self.tolerance * max(1.0, expected.abs().max().item()):
                raise Unsupported(
                    f"its logits differ from transformers' by up to {difference:.3g} on a probe of {len(self.sequences[slot])} tokens"
                )


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
            raise ConfigError(f"engine.device is {name}, which torch cannot use here: {error}; set engine.device to auto or cpu") from None
    count = torch.cuda.device_count()
    return torch.device("cuda", count - 1) if count else torch.device("cpu")


def _context_length(model_config: Any, wanted: int | None) -> int:
    allowed = int(getattr(model_config.get_text_config(), "max_position_embeddings", LONGEST_CONTEXT))
    if wanted is not None and wanted > allowed:
        raise ConfigError(f"engine.context_length is {wanted}; the model allows at most {allowed} (max_position_embeddings)")
    return wanted or min(allowed, LONGEST_CONTEXT)
