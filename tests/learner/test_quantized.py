from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import pytest
import torch
import transformers

from agentrl.errors import ConfigError
from agentrl.learner.quantized import Int8Rows, QuantizedLinear, quantize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner

CPU = torch.device("cpu")
IDS = list(range(3, 20))
KINDS = ["8bit", pytest.param("4bit", marks=pytest.mark.bitsandbytes)]
"""The mark skips where bitsandbytes is not installed."""

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def _needs_bitsandbytes(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("bitsandbytes"):
        pytest.importorskip("bitsandbytes")


def learner_of(folder: str, kind: str, objective: Any = "grpo", **lora: Any) -> Learner:
    config = fakes.run_config(learner={"lr": 0.05, "lora": {"rank": 4, "quantize": kind} | lora})
    return fakes.make_learner(folder, config, objective)


def test_int8_rows_by_hand() -> None:
    codes = Int8Rows(torch.tensor([[1.27, -0.5, 0.014], [0.0, 0.0, 0.0]]))
    assert codes.codes.tolist() == [[127, -50, 1], [0, 0, 0]]
    torch.testing.assert_close(codes.weight(), torch.tensor([[1.27, -0.5, 0.01], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantized_layer_multiplies_with_the_weight_that_it_shows(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 32, bias=bias)
    layer = QuantizedLinear(plain, kind)
    assert 0 < (layer.weight - plain.weight).abs().max() < (0.002 if kind == "8bit" else 0.03)
    one, other = (torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    expected = torch.nn.functional.linear(other, layer.weight, plain.bias)
    torch.testing.assert_close(layer(one), expected)
    layer(one).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    assert [name for name, _ in layer.named_parameters()] == (["bias"] if bias else [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_multiplied_as_it_is_alone(kind: str) -> None:
    """Codes of activations with outliers found over a batch would make a row depend on its neighbours."""
    layer = QuantizedLinear(torch.nn.Linear(64, 32), kind)
    rows = torch.randn(4, 64)
    rows[2] *= 100
    torch.testing.assert_close(layer(rows), torch.cat([layer(row[None]) for row in rows]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_the_merged_model_is_the_one_that_was_trained(kind: str, variant: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    """All layers of the export are those of the quantized base, and it is a plain model."""
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    learner = learner_of(folder, kind, variant=variant, target_modules=["q_proj", "up_proj"])
    for seed in range(2):
        learner.update(fakes.make_groups(seed))
    learner.export(tmp_path, None)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    ids = torch.tensor(IDS)
    found = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor(learner.logprobs_of(IDS)), rtol=0, atol=5e-6)
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    sent = dict(learner.named_weights())
    assert sent.keys() == before.keys() - {"lm_head.weight"}
    assert not learner.weights_are_partial
    assert not torch.equal(sent["model.layers.0.self_attn.k_proj.weight"], before["model.layers.0.self_attn.k_proj.weight"])
    assert torch.equal(sent["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_learner_goes_on_bit_for_bit(kind: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3")
    learner = learner_of(folder, kind, {"name": "rloo", "beta": 0.1}, variant="dora")
    learner.update(fakes.make_groups(0))
    learner.save(tmp_path)
    resumed = learner_of(folder, kind, {"name": "rloo", "beta": 0.1}, variant="dora")
    resumed.load(tmp_path)
    metrics = [one.update(fakes.make_groups(1)) for one in (learner, resumed)]
    assert metrics[0]["loss"] == metrics[1]["loss"]
    assert learner.fingerprint() == resumed.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_does_not_depend_on_how_a_step_is_cut(kind: str, model_folder: Callable[..., str]) -> None:
    learner = fakes.shaken(learner_of(model_folder(kind="qwen3"), kind))
    whole, _ = fakes.gradient_at_rest(learner, fakes.make_groups(3), max_grad_norm=None)
    cut, _ = fakes.gradient_at_rest(learner, fakes.make_groups(3), max_grad_norm=None, tokens_per_micro_batch=20)
    assert fakes.distance(whole, cut) < 1e-4


def test_weights_are_held_in_few_bits_and_the_head_is_not(model_folder: Callable[..., str]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(kind="qwen3", tie_word_embeddings=False))
    count = quantize(model, "8bit", CPU, skipped=[model.get_output_embeddings()], names=["o_proj"])
    kinds = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert count == 2 * 6
    assert {name for name, kind in kinds.items() if kind is torch.nn.Linear} == {"lm_head", "o_proj"}
    assert sum(one.numel() for one in model.model.layers[0].mlp.parameters()) == 0


def test_four_bits_without_bitsandbytes_say_what_to_install(model_folder: Callable[..., str]) -> None:
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"quantize=4bit needs bitsandbytes, .*pip install bitsandbytes.*or set .* to 8bit"):
            learner_of(model_folder(kind="qwen3"), "4bit")
    else:
        pytest.skip("bitsandbytes is installed here")
