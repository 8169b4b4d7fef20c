from __future__ import annotations

import json
from typing import TYPE_CHECKING

import learner_fakes as fakes
import pytest
import torch
import transformers
from safetensors.torch import load_file

from agentrl.errors import CheckpointError
from agentrl.learner.weights import adapter_config, adapter_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDS = torch.arange(3, 20)[None]


def logits(folder: str) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(IDS).logits.detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [True, False])
def test_full_weights_are_the_whole_state_dict_with_tied_ones_once(tied: bool, model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=tied)
    learner = fakes.make_learner(folder, fakes.run_config())
    weights = dict(learner.named_weights())
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert set(state) - set(weights) == ({"lm_head.weight"} if tied else set())
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())
    assert not learner.weights_are_partial


def test_an_adapter_is_merged_in_a_copy_and_only_what_it_changes_is_given(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    learner = fakes.make_learner(
        folder, fakes.run_config(learner={"lr": 0.05, "lora": {"rank": 4, "target_modules": ["q_proj", "down_proj"]}})
    )
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert learner.weights_are_partial
    assert all(torch.equal(tensor, state[name]) for name, tensor in learner.named_weights())
    learner.update(fakes.make_groups(0))
    first = dict(learner.named_weights())
    assert len(first) == 4
    assert all(name.endswith(("q_proj.weight", "down_proj.weight")) for name in first)
    assert all(not torch.equal(tensor, state[name]) for name, tensor in first.items())
    for _ in range(100):
        again = dict(learner.named_weights())
    assert all(torch.equal(tensor, first[name]) for name, tensor in again.items())
    frozen = {name: parameter for name, parameter in learner.policy.base.named_parameters() if not parameter.requires_grad}
    assert all(torch.equal(parameter, state[name.replace(".base_layer", "")]) for name, parameter in frozen.items())


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}], ids=["full", "lora"])
def test_the_exported_model_is_the_one_that_was_published(
    options: dict[str, object], model_folder: Callable[..., str], tmp_path: Path
) -> None:
    learner = fakes.make_learner(model_folder(kind="qwen3", tie_word_embeddings=True), fakes.run_config(learner={"lr": 0.05} | options))
    learner.update(fakes.make_groups(0))
    learner.export(tmp_path / "model", None)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in learner.named_weights())
    assert "agentrl" not in json.dumps(json.loads((tmp_path / "model" / "config.json").read_text()))
    before = logits(model_folder(kind="qwen3", tie_word_embeddings=True))
    assert (logits(str(tmp_path / "model")) - before).abs().max() > 1e-2
    assert (tmp_path / "model" / "adapter").exists() == bool(options)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_exported_adapter_on_the_first_model_is_the_exported_model(model_folder: Callable[..., str], tmp_path: Path) -> None:
    import peft

    folder = model_folder(kind="qwen3")
    learner = fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.05, "lora": {"rank": 4}}))
    learner.update(fakes.make_groups(0))
    learner.export(tmp_path, None)
    adapted = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    torch.testing.assert_close(adapted(IDS).logits, logits(str(tmp_path)), rtol=0, atol=1e-5)


def test_a_tokenizer_is_laid_beside_the_model(model_folder: Callable[..., str], tmp_path: Path) -> None:
    import tokenizers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    tokenizer.save_pretrained(tmp_path / "tokens")
    learner = fakes.make_learner(model_folder(), fakes.run_config())
    learner.export(tmp_path / "given", tokenizer)
    learner.export(tmp_path / "named", str(tmp_path / "tokens"))
    for name in ("given", "named"):
        assert (tmp_path / name / "tokenizer.json").exists()


def test_an_export_that_the_disk_refuses_is_an_error(model_folder: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the final model"):
        fakes.make_learner(model_folder(), fakes.run_config()).export(tmp_path / "file" / "below", None)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_as_servers_load_it_is_the_one_that_peft_saves(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    learner = fakes.make_learner(
        folder, fakes.run_config(learner={"lr": 0.05, "lora": {"rank": 4, "target_modules": ["q_proj", "up_proj"]}})
    )
    learner.update(fakes.make_groups(0))
    learner.export(tmp_path, None)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    given = dict(adapter_weights(learner.policy))
    assert set(given) == set(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in given.items())
    config = adapter_config(learner.policy)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert {key: config[key] for key in ("r", "lora_alpha", "peft_type", "bias", "task_type")} == {
        key: written[key] for key in ("r", "lora_alpha", "peft_type", "bias", "task_type")
    }
    assert json.loads(json.dumps(config)) == config
    with pytest.raises(ValueError, match="no adapter"):
        adapter_config(fakes.make_learner(folder, fakes.run_config()).policy)
