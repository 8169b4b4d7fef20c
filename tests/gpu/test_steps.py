"""Steps of the learner on a GPU: in float32 what a CPU makes of them, in bfloat16 close to that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from dataset_rows import make_examples
from gpu_fakes import GPU, Alone, cosine, flat, gap, gradients_of, learner_on, parameters

from agentrl import objectives
from agentrl.examples import Example, Text
from agentrl.objectives.registry import registered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")]

EMA = {"kind": "ema", "decay": 0.5}
BEMA = {"kind": "bema", "every": 2}
PPO = {"name": "ppo", "critic_warmup_steps": 0}
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "average": ({"name": "sft"}, {"ema": EMA}),
    "corrected average": ({"name": "grpo"}, {"ema": BEMA}),
    "moving reference": ({"name": "grpo", "beta": 0.1}, {"reference_sync": {"every": 2, "rate": 0.5}}),
    "critic": (PPO | {"critic": "model"}, {}),
    "value head": (PPO | {"critic": "head"}, {}),
    "adapter": ({"name": "dpo"}, {"lora": {"rank": 4}}),
    "dora": ({"name": "sft"}, {"lora": {"rank": 4, "variant": "dora"}}),
    "checkpointed": ({"name": "sft"}, {"gradient_checkpointing": True}),
    "noise": ({"name": "sft", "neftune_alpha": 5.0}, {}),
}
OPTIONS: dict[str, dict[str, Any]] = {"bnpo": {"reward_min": -20.0, "reward_max": 20.0}, "ssd": {"filter_empty": False}}
LARGER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32, "scale": 0.05}


def data_of(objective: dict[str, Any], seed: int) -> Any:
    """Groups, or rows of the kind that it learns from."""
    found = objectives.get(objective["name"])
    if found.data is None:
        rival = found.needs(objectives.validate(objective)).rival
        groups = fakes.make_groups(seed)
        return fakes.rivals(groups, rival) if rival else groups
    kind = found.needs(objectives.validate(objective))
    return make_examples(found.data, seed, texts=3 if objective["name"] == "tpo" else 2) if kind is not None else []


def both(folder: str, objective: dict[str, Any], steps: int, **learner: Any) -> None:
    """Assert that steps on both devices are the same to rounding."""
    here, there = (learner_on(device, folder, objective, **learner) for device in ("cpu", GPU))
    for seed in range(steps):
        data = data_of(objective, seed)
        (expected, right), (found, metrics) = gradients_of(here, data), gradients_of(there, data)
        assert found.keys() == expected.keys()
        assert metrics["loss"] == pytest.approx(right["loss"], rel=1e-4, abs=1e-5)
        assert metrics["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3, abs=1e-6)
        if found and float(flat(expected).norm()) > 1e-6:
            assert gap(flat(found), flat(expected)) < 1e-3
    left, other = parameters(here), parameters(there)
    assert left.keys() == other.keys()
    for name, one in left.items():
        torch.testing.assert_close(other[name].cpu(), one, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", sorted(registered().keys() - {"gold"}))  # gold wants tokenizers, and these models have none
def test_a_step_in_float32_is_the_cpus(name: str, model_folder: Callable[..., str]) -> None:
    both(model_folder(), {"name": name} | OPTIONS.get(name, {}), 2)


@pytest.mark.parametrize("case", list(SETTINGS))
def test_what_stands_around_a_step_is_the_cpus(case: str, model_folder: Callable[..., str]) -> None:
    objective, learner = SETTINGS[case]
    both(model_folder(), objective, 3, **learner)


@pytest.mark.parametrize("name", ["sft", "dpo", "orpo", "kto", "reward_model", "grpo"])
def test_a_step_in_bfloat16_points_where_float32_does(name: str, model_folder: Callable[..., str]) -> None:
    folder, objective = model_folder(**LARGER), {"name": name}
    rough, fine = (learner_on(GPU, folder, objective, dtype=dtype) for dtype in ("bfloat16", "float32"))
    data = data_of(objective, 0)
    (found, metrics), (expected, right) = gradients_of(rough, data), gradients_of(fine, data)
    alike = cosine(flat(found), flat(expected))
    print(f"bfloat16 {name}: loss {metrics['loss']:.6f} against {right['loss']:.6f}, cosine {alike:.6f}")
    assert metrics["loss"] == pytest.approx(right["loss"], rel=0.02, abs=0.005)
    assert alike > 0.99
    assert all(one.dtype == torch.float32 for one in rough.policy.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_alone_learns_and_merges(dtype: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = learner_on(GPU, model_folder(), "sft", dtype=dtype, lora={"rank": 4}, lr=0.01)
    before = {name: one.detach().clone() for name, one in learner.policy.named_parameters()}
    for seed in range(3):
        learner.update_examples(data_of({"name": "sft"}, seed))
    changed = {name for name, one in learner.policy.named_parameters() if not torch.equal(one, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    learner.export(tmp_path / "model", None)
    merged = learner_on(GPU, str(tmp_path / "model"), "sft")
    ids = list(range(3, 20))
    assert merged.logprobs_of(ids) == pytest.approx(learner.logprobs_of(ids), abs=1e-4)


@pytest.mark.parametrize(("dtype", "objective"), [("float32", "sft"), ("bfloat16", "sft"), ("bfloat16", "grpo"), ("float32", "ppo")])
def test_a_saved_learner_goes_on(dtype: str, objective: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    """To the same weights; where rows share tokens, sums on a GPU are in no fixed order, and the last bits differ."""
    first, second = (learner_on(GPU, model_folder(), objective, dtype=dtype, lr=0.01, ema=EMA) for _ in range(2))
    gradients_of(first, data_of({"name": objective}, 0))
    first.save(tmp_path)
    second.load(tmp_path)
    left, right = parameters(first), parameters(second)
    assert all(torch.equal(one, right[name]) for name, one in left.items())
    for learner in (first, second):
        gradients_of(learner, data_of({"name": objective}, 1))
    left, right = parameters(first), parameters(second)
    print(f"saved {objective} {dtype}: bit for bit {all(torch.equal(one, right[name]) for name, one in left.items())}")
    assert gap(flat(right), flat(left)) < (1e-6 if dtype == "float32" else 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_over_many_words_makes_no_whole_logits(dtype: str, model_folder: Callable[..., str]) -> None:
    """Peak above what is held, the gradients and their copies in half precision aside: a few tiles, and a quarter of the naive step's."""
    words, rows, length = 262_144, 8, 256
    folder = model_folder(vocab_size=words, hidden_size=64, scale=0.02)
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, words, length).astype(np.int32) for _ in range(rows)]
    texts = [Text(ids=one, trained=np.arange(length) > 0) for one in ids]
    examples = [Example(where="", texts=(text,), rewards=(0.0,)) for text in texts]
    learner = learner_on(GPU, folder, "sft", dtype=dtype, head_chunk_mib=64)
    held = 4 * sum(one.numel() for one in learner.policy.parameters())
    copies = held if dtype == "bfloat16" else 0  # weights and their gradients in half precision
    ours = peak(lambda: learner.update_examples(examples)) - held - copies
    model = learner.policy.base
    model.set_attn_implementation("eager")
    batch = torch.from_numpy(np.stack(ids).astype(np.int64)).to(model.device)

    def naive() -> None:
        with torch.autocast(GPU, torch.bfloat16, enabled=dtype == "bfloat16"):
            model(input_ids=batch, labels=batch).loss.backward()
        model.zero_grad()

    theirs = peak(naive) - held - copies
    print(f"peak over {words} words in {dtype}: {ours / 2**20:.0f} MiB, naive {theirs / 2**20:.0f} MiB")
    assert ours < theirs / 4
    assert ours < 6 * 64 * 2**20


def peak(work: Callable[[], object]) -> int:
    """Bytes that it takes at most above what is held before, at its second run."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_a_learner_knows_where_it_is(model_folder: Callable[..., str]) -> None:
    learner = learner_on(GPU, model_folder(), "sft", dtype="auto")
    assert isinstance(learner.accelerator, Alone)
    assert learner.policy.dtype == torch.bfloat16
    assert {one.device.type for one in learner.policy.parameters()} == {GPU}
