from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import peft
import pytest
import torch
import transformers
from example_fakes import preferences

from agentrl.errors import ConfigError
from agentrl.learner.adapters import adapted_layers
from agentrl.learner.merge import merge
from agentrl.learner.weights import all_weights, trained_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner

IDS = list(range(3, 20))
VARIANTS = ["lora", "rslora", "dora"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def learner_of(folder: str, lora: dict[str, Any], objective: Any = "grpo", **options: Any) -> Learner:
    return fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.05, "lora": {"rank": 4} | lora}), objective, **options)


def trained(folder: str, lora: dict[str, Any], objective: Any = "grpo", **options: Any) -> Learner:
    learner = learner_of(folder, lora, objective, **options)
    for seed in range(2):
        learner.update(fakes.make_groups(seed))
    return learner


def logprobs(model: Any) -> torch.Tensor:
    ids = torch.tensor(IDS)
    found: torch.Tensor = model(input_ids=ids[None]).logits[0, :-1].detach().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return found


def of(learner: Learner) -> torch.Tensor:
    return torch.tensor(learner.logprobs_of(IDS), dtype=torch.float64)


def loaded(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def near(left: torch.Tensor, right: torch.Tensor, gap: float = 5e-6) -> bool:
    return bool((left.double() - right.double()).abs().max() < gap)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_adapter_of_any_variant_changes_nothing_yet(variant: str, model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="qwen3")
    learner = learner_of(folder, {"variant": variant})
    assert near(of(learner), logprobs(loaded(folder)))
    names = {name for name, one in learner.policy.model.named_parameters() if one.requires_grad}
    assert all(".lora_" in name for name in names)
    assert any("magnitude" in name for name in names) == (variant == "dora")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_merged_model_and_the_adapter_on_its_base_are_what_was_trained(
    variant: str, kind: str, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    """Log-probs of the trained policy, of the merged export by transformers, and of the adapter by peft; GPT-2's layers are transposed."""
    folder = model_folder(kind=kind)
    learner = trained(folder, {"variant": variant})
    learner.export(tmp_path, None)
    assert not near(of(learner), logprobs(loaded(folder)), 0.05)
    assert near(of(learner), logprobs(loaded(tmp_path)))
    assert near(of(learner), logprobs(peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "adapter")))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_merged_layer_is_exact_in_double_precision(variant: str, kind: str, model_folder: Callable[..., str]) -> None:
    learner = trained(model_folder(kind=kind), {"variant": variant}, master_dtype=torch.float64)
    merged = dict(trained_weights(learner.policy))
    for name, layer in adapted_layers(learner.policy.base).items():
        weight = merged[f"{name}.weight"].t() if layer.fan_in_fan_out else merged[f"{name}.weight"]
        rows = torch.randn(3, weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = torch.nn.functional.linear(rows, weight, layer.base_layer.bias)
        torch.testing.assert_close(layer(rows), expected, rtol=1e-12, atol=1e-13)


def test_rank_stabilized_scaling_is_alpha_over_the_root_of_the_rank(model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(kind="qwen3"), {"variant": "rslora", "rank": 4, "alpha": 8.0})
    assert {module.scaling["default"] for module in adapted_layers(learner.policy.base).values()} == {4.0}
    assert learner.adapter_config()["use_rslora"] is True


def test_a_dora_merge_gives_each_output_its_trained_length(model_folder: Callable[..., str]) -> None:
    """By hand: m (W + s B A) / ||W + s B A|| by rows."""
    learner = trained(model_folder(kind="qwen3"), {"variant": "dora", "target_modules": ["q_proj"], "alpha": 8.0})
    layer: Any = learner.policy.base.get_decoder().layers[0].self_attn.q_proj
    weight = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    lengths = layer.lora_magnitude_vector["default"].weight
    expected = torch.stack([lengths[row] * weight[row] / weight[row].square().sum().sqrt() for row in range(len(weight))])
    found = dict(trained_weights(learner.policy))["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.linalg.norm(found, dim=1), lengths.detach())


@pytest.mark.parametrize("lora", [{"variant": "dora"}, {"variant": "rslora"}, {"quantize": "8bit"}], ids=str)
def test_a_hundred_merges_leave_the_base_as_it_was(lora: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner = trained(model_folder(kind="qwen3"), lora)
    frozen = {name: one.clone() for name, one in learner.policy.model.named_parameters() if not one.requires_grad}
    before, first = of(learner), dict(all_weights(learner.policy))
    for _ in range(100):
        again = dict(all_weights(learner.policy))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(one, dict(learner.policy.model.named_parameters())[name]) for name, one in frozen.items())
    assert torch.equal(of(learner), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_probe_logprobs_are_the_same_before_and_after_a_resume(variant: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3")
    learner = trained(folder, {"variant": variant})
    learner.save(tmp_path)
    resumed = learner_of(folder, {"variant": variant})
    resumed.load(tmp_path)
    assert torch.equal(of(resumed), of(learner))


def test_whole_modules_are_trained_saved_and_switched_off_with_the_adapter(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=False)
    lora = {"modules_to_save": ["lm_head", "norm", "embed_tokens"], "target_modules": ["q_proj"]}
    learner = trained(folder, lora)
    first = loaded(folder)
    base = learner.policy.base
    for name, before in (("lm_head", first.lm_head), ("model.norm", first.model.norm), ("model.embed_tokens", first.model.embed_tokens)):
        now = base.get_submodule(name).modules_to_save["default"].weight  # type: ignore[union-attr,index]
        assert not torch.equal(now, before.weight), name
    with learner.policy.without_adapter():
        assert near(of(learner), logprobs(first))
    learner.export(tmp_path, None)
    assert near(of(learner), logprobs(loaded(tmp_path)))
    assert near(of(learner), logprobs(peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "adapter")))
    sent = dict(learner.named_weights())
    assert {"lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"} < set(sent)
    learner.save(tmp_path / "kept")
    resumed = learner_of(folder, lora)
    resumed.load(tmp_path / "kept")
    assert resumed.fingerprint() == learner.fingerprint()
    continued = fakes.make_learner(folder, fakes.run_config(learner={"lora": {"adapter": str(tmp_path / "adapter")}}))
    assert torch.equal(of(continued), of(learner))


@pytest.mark.parametrize(
    ("lora", "layers"),
    [
        ({"layers": [1]}, {1}),
        ({"layers": [0], "target_modules": ["q_proj"]}, {0}),
        ({"exclude_modules": ["mlp.down_proj", "q_proj"]}, {0, 1}),
        ({"target_modules": r".*\.1\..*(q|v)_proj"}, {1}),
    ],
    ids=str,
)
def test_layers_are_chosen_by_number_name_and_exclusion(lora: dict[str, Any], layers: set[int], model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(kind="qwen3"), lora)
    names = list(dict(learner.named_weights()))
    assert {int(name.split(".")[2]) for name in names} == layers
    assert not any(part in name for part in lora.get("exclude_modules", ()) for name in names)
    assert names


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"target_modules": ["q_proj", "qproj"]}, r"learner\.lora\.target_modules has 'qproj', .* it has .*q_proj"),
        ({"exclude_modules": ["nothing"]}, r"learner\.lora\.exclude_modules has 'nothing'"),
        ({"modules_to_save": ["score"]}, r"learner\.lora\.modules_to_save has 'score'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save has lm_head, .* one matrix"),
        ({"target_modules": ["lm_head", "q_proj"]}, r"adapts the output layer, .* one matrix"),
        ({"layers": [2]}, r"learner\.lora\.layers has 2, and the model has 2 layers, numbered from 0"),
        ({"layers": [0], "target_modules": ".*q_proj"}, r"learner\.lora\.layers=\[0\] needs target_modules to be names"),
    ],
    ids=str,
)
def test_names_that_no_module_has_are_refused(lora: dict[str, Any], said: str, model_folder: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=said):
        learner_of(model_folder(kind="qwen3", tie_word_embeddings=True), lora)


def test_an_adapter_that_peft_would_begin_anew_is_drawn_from_the_seed(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="qwen3")
    prints = [
        fakes.make_learner(folder, fakes.run_config(seed=seed, learner={"lora": {"variant": "dora"}})).fingerprint() for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_adapter_of_a_reward_model_holds_its_head(model_folder: Callable[..., str], tmp_path: Path) -> None:
    """Merged by transformers, alone by peft, and gone on with: the same scores."""
    folder, rows = model_folder(kind="qwen3"), preferences(6)
    learner = learner_of(folder, {"variant": "dora"}, "reward_model")
    for _ in range(2):
        learner.update_examples(rows)
    learner.export(tmp_path, None)
    ids = torch.tensor(rows[0].texts[0].ids[None].astype("int64"))
    kind = transformers.AutoModelForSequenceClassification
    merged = kind.from_pretrained(tmp_path, dtype=torch.float32)(input_ids=ids).logits
    adapted = peft.PeftModel.from_pretrained(kind.from_pretrained(folder, num_labels=1, dtype=torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(adapted(input_ids=ids).logits, merged)
    again = fakes.make_learner(folder, fakes.run_config(learner={"lora": {"adapter": str(tmp_path / "adapter")}}), "reward_model")
    assert again.fingerprint() == learner.fingerprint()
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    torch.testing.assert_close(kind.from_pretrained(tmp_path / "merged", dtype=torch.float32)(input_ids=ids).logits, merged)
