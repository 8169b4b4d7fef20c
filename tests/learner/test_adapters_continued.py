"""Adapters that go on from a folder: what comes back, what their reference is, and which folders are refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapters import VARIANTS, loaded, of, trained

from agentrl.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("way", ["ours", "theirs"])
def test_an_adapter_is_continued_from_its_folder(variant: str, way: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    """One of agentrl's own, and one that peft saved without it; rank, alpha and variant are the adapter's."""
    folder = model_folder(kind="qwen3")
    first = trained(folder, {"variant": variant, "alpha": 6.0, "target_modules": ["q_proj", "up_proj"]})
    first.export(tmp_path, None)
    adapter = tmp_path / "adapter"
    if way == "theirs":
        peft.PeftModel.from_pretrained(loaded(folder), adapter).save_pretrained(tmp_path / "theirs")
        adapter = tmp_path / "theirs"
    second = fakes.make_learner(folder, fakes.run_config(learner={"lora": {"adapter": str(adapter)}}))
    assert torch.equal(of(second), of(first))
    assert second.fingerprint() == first.fingerprint()
    second.update(fakes.make_groups(5))
    assert second.fingerprint() != first.fingerprint()


def test_the_reference_of_a_continued_adapter_is_the_one_that_is_named(model_folder: Callable[..., str], tmp_path: Path) -> None:
    """The model without the adapter, or with it as the run began, also after steps and after a resume."""
    folder = model_folder(kind="qwen3")
    trained(folder, {}).export(tmp_path / "first", None)
    adapter = str(tmp_path / "first" / "adapter")
    groups = fakes.make_groups(7)
    rloo = {"name": "rloo", "beta": 0.1}

    def continued(reference: str) -> Learner:
        config = fakes.run_config(learner={"lr": 0.05, "lora": {"adapter": adapter, "reference": reference}})
        return fakes.make_learner(folder, config, rloo)

    start, base = continued("start"), continued("base")
    assert start.update(groups)["kl"] == pytest.approx(0.0, abs=1e-6)
    assert abs(base.update(groups)["kl"]) > 1e-3
    moved = [learner.update(groups)["kl"] for learner in (start, base)]
    assert all(abs(one) > 1e-3 for one in moved)
    start.save(tmp_path / "kept")
    again = continued("start")
    again.load(tmp_path / "kept")
    metrics = [learner.update(groups) for learner in (start, again)]
    assert metrics[0]["kl"] == metrics[1]["kl"]
    assert start.fingerprint() == again.fingerprint()
    with pytest.raises(CheckpointError, match=r"holds adapter_start.safetensors.*set learner.lora.reference as it was"):
        continued("base").load(tmp_path / "kept")


def test_using_the_start_as_reference_leaves_the_policy_bit_for_bit(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3")
    trained(folder, {"variant": "dora"}).export(tmp_path, None)
    lora = {"adapter": str(tmp_path / "adapter"), "reference": "start"}
    learner = fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.0, "lora": lora}), {"name": "rloo", "beta": 0.1})
    before = learner.fingerprint()
    fakes.shaken(learner)
    shaken = learner.fingerprint()
    assert shaken != before
    learner.update(fakes.make_groups(0))
    assert learner.fingerprint() == shaken


@pytest.fixture
def adapter(model_folder: Callable[..., str], tmp_path: Path) -> Path:
    """An adapter on the tiny model."""
    trained(model_folder(kind="qwen3"), {"target_modules": ["q_proj"]}).export(tmp_path / "run", None)
    return tmp_path / "run" / "adapter"


def continued(model: str, folder: Path) -> Learner:
    return fakes.make_learner(model, fakes.run_config(learner={"lora": {"adapter": str(folder)}}))


def test_an_adapter_of_other_weights_is_refused(adapter: Path, model_folder: Callable[..., str], tmp_path: Path) -> None:
    other = model_folder(kind="qwen3", seed=1)
    with pytest.raises(ConfigError, match=r"was trained on other weights than those in .*agentrl merge"):
        continued(other, adapter)
    (adapter / "agentrl_base.json").unlink()
    with pytest.raises(ConfigError, match=r"was trained on .*, whose weights are not those in"):
        continued(other, adapter)
    copy = shutil.copytree(model_folder(kind="qwen3"), tmp_path / "copy")
    assert continued(str(copy), adapter).policy.adapted  # the same weights in another place


def test_an_adapter_of_another_shape_is_refused(adapter: Path, model_folder: Callable[..., str]) -> None:
    (adapter / "agentrl_base.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "somebody/model"}))
    with pytest.raises(ConfigError, match=r"q_proj.lora_A.weight is \(4, 32\) in the file and \(4, 64\) here"):
        continued(model_folder(kind="qwen3", hidden_size=64), adapter)
    with pytest.raises(ConfigError, match="does not fit the model"):
        continued(model_folder(kind="qwen3", num_hidden_layers=3), adapter)


def test_a_damaged_adapter_is_refused(adapter: Path, model_folder: Callable[..., str]) -> None:
    model, weights = model_folder(kind="qwen3"), load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({key: one for key, one in weights.items() if key != name}, adapter / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=f"the file has no {name}"):
        continued(model, adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors does not read"):
        continued(model, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no adapter_model.safetensors"):
        continued(model, adapter)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, r"is of the type 'IA3'; LORA is the one"),
        ({"bias": "all"}, r"uses bias=all"),
        ({"layer_replication": [[0, 1]]}, r"uses layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, r"uses init_lora_weights=pissa_niter_4 \(convert it"),
        ({"a_key_of_the_future": True}, r"was saved with a_key_of_the_future, which this peft does not know"),
    ],
    ids=str,
)
def test_an_adapter_of_another_make_is_refused(change: dict[str, Any], said: str, adapter: Path, model_folder: Callable[..., str]) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=said):
        continued(model_folder(kind="qwen3"), adapter)
