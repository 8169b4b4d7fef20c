from __future__ import annotations

from typing import TYPE_CHECKING

import learner_fakes as fakes
import pytest
import torch
import transformers

from agentrl.learner import loading
from agentrl.learner.attention import ATTENTION
from agentrl.learner.fused import fuse, norm_backward, rms_scale
from agentrl.learner.layers import replace_layers
from agentrl.products import linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.learner import Learner

KINDS = {
    "qwen3": {},
    "llama": {},
    "llama with another head size": {"kind": "llama", "head_dim": 12},
    "qwen2": {},
}


def shaken(folder: str, *, seed: int = 0) -> transformers.PreTrainedModel:
    """A model none of whose parameters is 0 or 1: norms and biases start as such, and would hide a mistake."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=ATTENTION, dtype=torch.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    return model


def learners(folder: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Learner, Learner]:
    config = fakes.run_config(learner={"lr": 0.0, "max_grad_norm": None})
    ours = fakes.make_learner(folder, config)
    monkeypatch.setattr(loading, "fuse", lambda model: 0)
    monkeypatch.setattr(loading, "replace_layers", lambda model: 0)
    return ours, fakes.make_learner(folder, config)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_equal_those_of_transformers_layers(
    name: str, model_folder: Callable[..., str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"kind": name} | KINDS[name]
    folder = f"{tmp_path}/shaken"
    model = shaken(model_folder(**options))
    model.save_pretrained(folder)
    ours, theirs = learners(folder, monkeypatch)
    assert all("forward" in vars(layer) for layer in ours.policy.base.model.layers), "nothing was replaced"
    assert not any("forward" in vars(module) for module in theirs.policy.modules())
    for seed in range(3):
        groups = fakes.make_groups(seed)
        found, metrics = fakes.gradients(ours, groups)
        expected, others = fakes.gradients(theirs, groups)
        assert fakes.distance(found, expected) < 2e-5
        assert metrics["loss"] == pytest.approx(others["loss"], abs=1e-6)


@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_in_float64_passes_finite_differences(biased: bool, model_folder: Callable[..., str]) -> None:
    model = shaken(model_folder(kind="qwen2" if biased else "qwen3", num_hidden_layers=1)).double()
    assert replace_layers(model) == 1
    layer = model.model.layers[0]
    from agentrl.learner.attention import Segments

    positions = torch.tensor([[0, 1, 2, 0, 1]])
    arrays = [torch.tensor(places).numpy() for places in ((0, 1, 2), (3, 4))]
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    turns = tuple(part.double() for part in model.model.rotary_emb(hidden, positions))
    segments = Segments.of(arrays, 5, hidden.device)
    parameters = [parameter for parameter in layer.parameters() if parameter.ndim == 1 or parameter.numel() <= 1024]

    def run(hidden: torch.Tensor, *changed: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layer(hidden, position_embeddings=turns, segments=segments)
        return out

    assert torch.autograd.gradcheck(run, (hidden, *parameters), fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gemma3_text", {}), ("mistral", {"sliding_window": 4}), ("olmo2", {}), ("phi3", {"pad_token_id": 0})],
)
def test_what_is_another_formula_stays_as_it_was(kind: str, options: dict[str, object], model_folder: Callable[..., str]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(kind=kind, **options), attn_implementation=ATTENTION)
    assert replace_layers(model) == 0


def test_a_changed_formula_of_the_same_parts_is_found_out(model_folder: Callable[..., str]) -> None:
    model = shaken(model_folder())
    model.model.layers[0].self_attn.scaling *= 1.01
    before = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda hidden: before(hidden) * 1.01
    assert replace_layers(model) == 1  # the first one reads its scaling when it is called, the second is something else


def test_a_replaced_layer_without_segments_is_transformers_own(model_folder: Callable[..., str]) -> None:
    model = shaken(model_folder())
    ids = torch.tensor([[3, 4, 5, 6]])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model.set_attn_implementation(ATTENTION)
        assert replace_layers(model) == 2
        model.set_attn_implementation("eager")
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(("kind", "modules"), [("qwen3", 2 * 4 + 1 + 2), ("gemma3_text", 2 * 6 + 1 + 2), ("llama", 2 * 2 + 1 + 2)])
def test_norms_and_gated_activations_are_replaced_and_equal(kind: str, modules: int, model_folder: Callable[..., str]) -> None:
    model = shaken(model_folder(kind=kind))
    model.set_attn_implementation("eager")
    ids = torch.tensor([[3, 4, 5, 6]])
    loss = model(input_ids=ids).logits.logsumexp(-1).sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert fuse(model) == modules
    ours = torch.autograd.grad(model(input_ids=ids).logits.logsumexp(-1).sum(), list(model.parameters()))
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=2e-4, atol=2e-5)


def test_norm_backward_passes_finite_differences() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight, upstream = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((5, 8), (8,), (5, 8)))
    hidden.requires_grad_()
    weight.requires_grad_()
    (hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight * upstream).sum().backward()
    scale = rms_scale(hidden.detach(), 1e-6)
    grad_weight = torch.empty(8, dtype=torch.float64)
    grad = norm_backward(upstream, hidden.detach() * scale, scale, weight.detach(), grad_weight)
    torch.testing.assert_close(grad, hidden.grad)
    torch.testing.assert_close(grad_weight, weight.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_the_product(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    values, weight, bias = (torch.randn(shape, generator=random, dtype=dtype) for shape in ((7, 5), (3, 5), (3,)))
    torch.testing.assert_close(linear(values, weight), values @ weight.t())
    torch.testing.assert_close(linear(values, weight, bias), values @ weight.t() + bias)
    torch.testing.assert_close(linear(values, weight.t().contiguous().t()), values @ weight.t())
