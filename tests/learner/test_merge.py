from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import peft
import pytest
import torch
import transformers
from typer.testing import CliRunner

from agentrl.cli import make_app
from agentrl.errors import ConfigError
from agentrl.learner.merge import merge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

IDS = torch.arange(3, 20)[None]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def nothing(**_: object) -> Any:
    """Stands where the commands that train and evaluate are."""


def logits(folder: Path | str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    found: torch.Tensor = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)(IDS).logits.detach()
    return found


def adapter_on(folder: str, out: Path, layers: Sequence[str] = ("q_proj", "up_proj"), **options: object) -> Path:
    """An adapter that peft made and saved by itself, and that changes the model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[*layers], task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(out, save_embedding_layers=False)
    return out


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 4}}], ids=str)
def test_an_adapter_of_peft_is_merged(options: dict[str, object], model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    adapter = adapter_on(folder, tmp_path / "adapter", **options)
    adapted = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), adapter)
    expected = adapted(IDS).logits.detach()
    assert merge(str(adapter), tmp_path / "merged") == folder
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=0, atol=1e-5)
    assert (expected - logits(folder)).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # peft's own, where it makes the adapter
def test_an_adapter_of_the_output_layer_is_merged_whole_or_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=False)
    adapter = adapter_on(folder, tmp_path / "own", ("q_proj", "lm_head"))
    expected = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), adapter)(IDS).logits.detach()
    merge(str(adapter), tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=0, atol=1e-5)
    tied = adapter_on(model_folder(kind="qwen3", tie_word_embeddings=True), tmp_path / "tied", ("q_proj", "lm_head"))
    with pytest.raises(ConfigError, match="adapts the output layer, and this model's head and embeddings are one matrix"):
        merge(str(tied), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_types_of_the_weights_are_the_bases_unless_one_is_named(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3")
    adapter = str(adapter_on(folder, tmp_path / "adapter"))
    merge(adapter, tmp_path / "half-of-it", dtype="bfloat16")
    merge(adapter, tmp_path / "whole")
    types = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).dtype for name in ("half-of-it", "whole")]
    assert types == [torch.bfloat16, torch.float32]
    expected = logits(tmp_path / "whole")
    torch.testing.assert_close(logits(tmp_path / "half-of-it"), expected, rtol=0.1, atol=0.1)


def test_what_cannot_be_merged_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3")
    adapter = adapter_on(folder, tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        merge(str(adapter), tmp_path / "full")
    with pytest.raises(ConfigError, match="whose weights are not those in"):
        merge(str(adapter), tmp_path / "out", model=model_folder(kind="qwen3", seed=5))
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_made_or_what_is_wrong(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3")
    adapter = adapter_on(folder, tmp_path / "adapter")
    done = CliRunner().invoke(make_app(nothing, nothing), ["merge", str(adapter), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"{folder} with the adapter {adapter} merged" in done.output
    wrong = CliRunner().invoke(make_app(nothing, nothing), ["merge", str(tmp_path), "--output", str(tmp_path / "other")])
    assert wrong.exit_code == 2
    assert "adapter_config.json" in wrong.output


def test_an_agentrl_adapter_merges_to_the_model_that_was_exported(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = fakes.make_learner(model_folder(kind="qwen3"), fakes.run_config(learner={"lr": 0.05, "lora": {"rank": 2, "variant": "dora"}}))
    learner.update(fakes.make_groups(0))
    learner.export(tmp_path / "run", None)
    merge(str(tmp_path / "run" / "adapter"), tmp_path / "merged")
    assert torch.equal(logits(tmp_path / "merged"), logits(tmp_path / "run"))
