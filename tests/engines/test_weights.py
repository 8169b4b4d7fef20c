from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from agentrl.checksum import weights_checksum
from agentrl.engines.messages import Hello
from agentrl.engines.weights_file import WeightsFile
from agentrl.errors import PublishError
from agentrl.records import Version

ALL = ["llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2"]


def hello(dtype="float32", num_weights=60):
    return Hello(
        context_length=256,
        vocab_size=97,
        dtype=dtype,
        model_type="",
        decoder="",
        version=Version(),
        num_weights=num_weights,
        weight_bytes=0,
    )


def untied(model):
    state = model.reference.state_dict()
    seen, result = set(), {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            result[name] = tensor
    return result


@pytest.mark.parametrize("name", ALL)
def test_every_weight_reads_back_exactly_as_it_was_loaded(models, name):
    model = models(name)
    bindings = model.loaded.decoder.weights.bindings
    state = model.reference.state_dict()
    assert set(bindings) == set(state)
    for key, tensor in state.items():
        assert torch.equal(bindings[key].read(), tensor), key


@pytest.mark.parametrize("name", ALL)
def test_a_published_file_gives_both_sides_one_checksum_and_new_logits(fresh, tmp_path, name):
    model = fresh(name)
    changed = [(key, tensor + torch.randn_like(tensor)) for key, tensor in untied(model).items()]
    with WeightsFile(hello()) as file:
        file.write(iter(reversed(changed)))
        with torch.inference_mode():
            checksum = model.loaded.decoder.weights.load(file.path, partial=False)
    assert checksum == file.checksum == weights_checksum(changed)
    for key, tensor in changed:
        assert torch.equal(model.loaded.decoder.weights.bindings[key].read(), tensor)


def test_a_checksum_sees_names_shapes_types_and_single_bits():
    base = {"a": torch.arange(6.0), "b": torch.ones(3)}
    one = weights_checksum(base.items())
    assert one == weights_checksum(reversed(base.items()))
    assert one != weights_checksum({"a": base["b"], "b": base["a"]}.items())
    assert one != weights_checksum({**base, "a": base["a"].view(2, 3)}.items())
    assert one != weights_checksum({"a": base["a"]}.items())
    flipped = base["a"].clone()
    flipped.view(torch.int32)[3] ^= 1
    assert one != weights_checksum({**base, "a": flipped}.items())
    assert weights_checksum(base.items(), torch.bfloat16) == weights_checksum({k: v.bfloat16() for k, v in base.items()}.items())


def test_a_transposed_tensor_has_the_checksum_of_its_values():
    matrix = torch.randn(4, 5)
    assert weights_checksum([("a", matrix.t())]) == weights_checksum([("a", matrix.t().contiguous())])


def test_tensors_travel_in_the_engines_type():
    with WeightsFile(hello("bfloat16")) as file:
        file.write([("a", torch.tensor([1.0, 2.0])), ("n", torch.tensor([3]))])
        assert file.checksum == weights_checksum([("a", torch.tensor([1.0, 2.0]).bfloat16()), ("n", torch.tensor([3]))])


def test_a_name_that_comes_twice_is_refused():
    with WeightsFile(hello()) as file, pytest.raises(PublishError, match="'a' came twice"):
        file.write([("a", torch.ones(1)), ("a", torch.ones(1))])


def test_far_too_many_names_are_refused():
    with WeightsFile(hello(num_weights=1)) as file, pytest.raises(PublishError, match="far more than the engine's model has"):
        file.write((f"weight {index}", torch.ones(1)) for index in range(500))


def test_unknown_missing_and_misshapen_weights_are_refused_before_anything_changes(fresh, tmp_path):
    model = fresh("qwen3")
    weights, state = model.loaded.decoder.weights, untied(model)
    for sent, message in (
        ({**state, "model.layers.9.mlp.up_proj.weight": torch.ones(2)}, r"has no weight 'model.layers.9.mlp.up_proj.weight'"),
        ({key: tensor for key, tensor in state.items() if key != "model.norm.weight"}, "'model.norm.weight' was not sent"),
        ({**state, "model.norm.weight": torch.ones(31)}, r"'model.norm.weight' was sent with shape \[31\]; the engine's has \[32\]"),
    ):
        save_file({key: tensor.contiguous() + 1 for key, tensor in sent.items()}, tmp_path / "sent.safetensors")
        with pytest.raises(PublishError, match=message):
            weights.load(str(tmp_path / "sent.safetensors"), partial=False)
    assert torch.equal(weights.bindings["model.norm.weight"].read(), state["model.norm.weight"])


def test_a_file_that_is_none_is_refused(models, tmp_path):
    (tmp_path / "sent.safetensors").write_bytes(b"nothing of the kind")
    for name in ("sent.safetensors", "missing.safetensors"):
        with pytest.raises(PublishError, match="cannot read the weights"):
            models("qwen3").loaded.decoder.weights.load(str(tmp_path / name), partial=False)


def test_a_tied_head_may_come_under_either_name_and_missing_weights_are_fine_where_they_never_change(fresh, tmp_path):
    model = fresh("qwen3")
    weights, state = model.loaded.decoder.weights, untied(model)
    head = {("lm_head.weight" if key == "model.embed_tokens.weight" else key): tensor for key, tensor in state.items()}
    path = str(tmp_path / "sent.safetensors")
    save_file({key: tensor.clone() for key, tensor in head.items()}, path)
    with torch.inference_mode():
        assert weights.load(path, partial=False) == weights_checksum(head.items())
        save_file({"model.norm.weight": torch.full((32,), 2.0)}, path)
        assert weights.load(path, partial=True) == weights_checksum([("model.norm.weight", torch.full((32,), 2.0))])
    assert torch.equal(weights.bindings["model.norm.weight"].read(), torch.full((32,), 2.0))


def test_different_tensors_for_one_tied_weight_show_in_the_checksum(fresh, tmp_path):
    model = fresh("qwen3")
    sent = {**untied(model), "lm_head.weight": torch.zeros(97, 32)}
    path = str(tmp_path / "sent.safetensors")
    save_file({key: tensor.clone() for key, tensor in sent.items()}, path)
    with torch.inference_mode():
        assert model.loaded.decoder.weights.load(path, partial=False) != weights_checksum(sent.items())
