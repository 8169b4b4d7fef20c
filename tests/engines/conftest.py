from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from agentrl.config_engine import EngineConfig
from agentrl.engines.decoder import Loaded, load_decoder
from agentrl.engines.protocol import Completion, Request
from agentrl.engines.scheduler import Scheduler
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.records import SamplingContract, Version

sys.path.insert(0, str(Path(__file__).parent))  # fakes that several modules here share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_server_fake import FakeServers

    from agentrl.engines.slots import Key

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, max_position_embeddings=256, attention_bias=True),
    "llama3_rope": lambda: transformers.LlamaConfig(
        **SMALL,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, max_position_embeddings=256, tie_word_embeddings=False),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SMALL, max_position_embeddings=256, sliding_window=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL,
        head_dim=16,
        max_position_embeddings=256,
        sliding_window=16,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "phi": lambda: transformers.PhiConfig(**{**SMALL, "num_key_value_heads": 4}, max_position_embeddings=256),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, head_dim=16, max_position_embeddings=256, sliding_window=16, query_pre_attn_scalar=16, attn_logit_softcapping=5.0
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SMALL, head_dim=16, max_position_embeddings=256, sliding_window=16, num_local_experts=2, num_experts_per_tok=1
    ),
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A random model on disk, as the engine loads it and as transformers does."""

    folder: str
    loaded: Loaded
    reference: Any

    def scheduler(self, **options: Any) -> Scheduler:
        arguments = {"num_slots": 16, "recompute": False, "version": Version(), "memory_bytes": 1 << 28, **options}
        return Scheduler(self.loaded, **arguments)

    def logprobs(self, prompt: np.ndarray, completion: Completion, temperature: float = 1.0) -> np.ndarray:
        """What transformers gives the sampled tokens in one forward pass without a cache."""
        ids = torch.from_numpy(np.concatenate([prompt, completion.ids]).astype(np.int64))
        with torch.no_grad():
            logits = self.reference(input_ids=ids[None], use_cache=False).logits[0].float()
        scored = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
        return scored.gather(1, ids[len(prompt) :, None]).squeeze(1).numpy()


def random_model(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():  # sharper than the default initialization, and no norm is trivial
        noise = torch.randn(parameter.shape)
        if parameter.dim() > 1:
            parameter.copy_(noise * 0.15)
        elif "norm" in parameter_name:
            parameter.add_(noise * 0.3)
        else:
            parameter.copy_(noise * 0.3)
    return model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    torch.set_num_threads(1)
    made: dict[tuple[str, int], Model] = {}

    def make(name: str, seed: int = 0) -> Model:
        if (name, seed) not in made:
            folder = str(tmp_path_factory.mktemp(name))
            random_model(name, seed).save_pretrained(folder)
            loaded = load_decoder(folder, EngineConfig(device="cpu"))
            reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            made[name, seed] = Model(folder=folder, loaded=loaded, reference=reference)
        return made[name, seed]

    return make


@pytest.fixture
def fresh(models: Callable[[str], Model]) -> Callable[[str], Model]:
    """A model whose weights the test may change."""

    def make(name: str) -> Model:
        folder = models(name).folder
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        return Model(folder=folder, loaded=load_decoder(folder, EngineConfig(device="cpu")), reference=reference)

    return make


def request(ids: Any, max_tokens: int = 8, *, seed: int = 0, session: str = "", stop_ids: tuple[int, ...] = (), **contract: Any) -> Request:
    return Request(
        ids=np.asarray(ids, dtype=np.int32),
        max_tokens=max_tokens,
        contract=SamplingContract(**contract),
        seed=seed,
        stop_ids=stop_ids,
        session=session,
    )


def finish(scheduler: Scheduler) -> dict[Key, Completion]:
    """Step until nothing is left."""
    done: dict[Key, Completion] = {}
    while scheduler.num_running or scheduler.num_waiting:
        for finished in scheduler.step():
            assert not isinstance(finished.result, str), finished.result
            done[finished.key] = finished.result
    return done


@pytest.fixture
def make_request() -> Callable[..., Request]:
    return request


@pytest.fixture
def run_all() -> Callable[[Scheduler], dict[Key, Completion]]:
    return finish


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Callable[..., VllmPublisher]]:
    """Publishers over files below `tmp_path`, closed at the end."""
    made: list[VllmPublisher] = []

    def make(fleet: FakeServers, **options: Any) -> VllmPublisher:
        transport = options.pop("transport", None) or FilesystemTransport(str(tmp_path))
        made.append(VllmPublisher(transport, fleet.control, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
