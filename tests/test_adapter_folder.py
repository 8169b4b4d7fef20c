from __future__ import annotations

import json
import re

import pytest
import tokenizers
import transformers

from agentrl import adapter_folder, objectives
from agentrl.adapter_folder import check_base, check_tokenizer, files_checksum, settled, tokenizer_differences, whole_only
from agentrl.adapter_needs import mistakes_of_adapter
from agentrl.config import RunConfig
from agentrl.config_learner import LoraConfig
from agentrl.engines.vllm_setup import transport_of
from agentrl.errors import ConfigError
from agentrl.offline_needs import mistakes_of_online

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "a/model"}


def write(folder, **options):
    folder.mkdir(exist_ok=True)
    (folder / adapter_folder.CONFIG).write_text(json.dumps(PLAIN | options))
    return str(folder)


def tokenizer(vocabulary, **options):
    model = tokenizers.models.WordLevel(vocabulary, unk_token="a")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), **options)


def run_of(lora, objective="grpo", **options):
    return RunConfig.model_validate({"model": "m", "env": "e", "objective": objective, "learner": {"lora": lora}} | options)


def mistakes(config):
    row, own = objectives.get(config.objective["name"]), objectives.validate(config.objective)
    return dict(mistakes_of_adapter(config, row.needs(own), row.name))


def test_a_continued_adapter_brings_its_own_settings(tmp_path):
    folder = write(tmp_path / "a", use_dora=True, rank_pattern={"q_proj": 32}, layers_to_transform=[0, 1], modules_to_save=["norm"])
    own = settled(LoraConfig(adapter=folder))
    assert (own.variant, own.rank, own.alpha, own.layers, own.modules_to_save) == ("dora", 32, 16.0, [0, 1], ["norm"])
    assert own.target_modules == ["q_proj", "v_proj"]
    assert settled(LoraConfig(rank=3)) == LoraConfig(rank=3)
    assert settled(own) == own


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 4}, "learner.lora.rank is 4 and the adapter in 'FOLDER' has 8: an adapter that is continued keeps its own"),
        ({"variant": "dora"}, "learner.lora.variant is dora and the adapter in 'FOLDER' has lora"),
        ({"target_modules": ["up_proj"]}, "learner.lora.target_modules is ['up_proj']"),
    ],
)
def test_other_settings_than_those_of_the_adapter_are_refused(tmp_path, options, said):
    folder = write(tmp_path / "a")
    with pytest.raises(ConfigError, match=re.escape(said.replace("FOLDER", folder))):
        settled(LoraConfig(adapter=folder, **options))
    settled(LoraConfig(adapter=folder, rank=8, target_modules=["v_proj", "q_proj"]))


def test_a_folder_that_is_no_adapter_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        settled(LoraConfig(adapter=str(tmp_path)))
    write(tmp_path / "adapter")  # as a run's model/ has it, whose own weights are merged
    with pytest.raises(ConfigError, match=rf"has no adapter_config\.json; name {re.escape(str(tmp_path))}/adapter, which has one"):
        settled(LoraConfig(adapter=str(tmp_path)))
    (tmp_path / adapter_folder.CONFIG).write_text("{")
    with pytest.raises(ConfigError, match=r"adapter_config\.json does not read: "):
        settled(LoraConfig(adapter=str(tmp_path)))


@pytest.mark.parametrize(("model", "fits"), [("a/model", True), ("b/model", False), (".", True)], ids=["same", "another", "a folder"])
def test_names_on_the_hub_are_compared(tmp_path, model, fits):
    folder = write(tmp_path / "a")
    if fits:
        check_base(folder, model)
    else:
        with pytest.raises(ConfigError, match=r"was trained on 'a/model', and model is 'b/model'; .*agentrl merge"):
            check_base(folder, model)


def test_folders_are_compared_by_the_bytes_of_their_weights(tmp_path):
    for name, content in (("first", b"1"), ("copy", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    folder = write(tmp_path / "a", base_model_name_or_path=str(tmp_path / "first"))
    check_base(folder, str(tmp_path / "first"))
    check_base(folder, str(tmp_path / "copy"))
    with pytest.raises(ConfigError, match="whose weights are not those in"):
        check_base(folder, str(tmp_path / "other"))
    adapter_folder.write_base(tmp_path / "a", str(tmp_path / "other"))
    check_base(folder, str(tmp_path / "other"))  # what was recorded counts more than a path
    with pytest.raises(ConfigError, match=f"other weights than those in .*{files_checksum(str(tmp_path / 'other'))}"):
        check_base(folder, str(tmp_path / "first"))
    (tmp_path / "a" / adapter_folder.BASE).write_text("[]")
    with pytest.raises(ConfigError, match=r"agentrl_base\.json does not read"):
        check_base(folder, str(tmp_path / "first"))


VOCABULARY = {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("own", "options", "said"),
    [
        (VOCABULARY, {}, []),
        ({"a": 0, "c": 1, "b": 2}, {}, ["token 'b' is 2 and 1", "token 'c' is 1 and 2"]),
        ({"a": 0, "b": 1, "c": 2, "d": 3}, {}, ["4 tokens and 3", "token 'd' is 3 and missing"]),
        (VOCABULARY, {"eos_token": "b"}, ["eos_token_id is 1 and 2"]),
        (VOCABULARY, {"chat_template": "x"}, ["only the adapter's has a chat template"]),
    ],
)
def test_tokenizers_that_differ_are_told_apart(tmp_path, own, options, said):
    left, right = tokenizer(own, **({"eos_token": "c"} | options)), tokenizer(VOCABULARY, eos_token="c")
    if own.get("c") != 2:
        right = tokenizer(VOCABULARY)
        left = tokenizer(own)
    assert tokenizer_differences(left, right) == said
    left.save_pretrained(tmp_path / "adapter")
    right.save_pretrained(tmp_path / "model")
    if said:
        with pytest.raises(ConfigError, match=re.escape("; ".join(said))):
            check_tokenizer(str(tmp_path / "adapter"), str(tmp_path / "model"))
    else:
        check_tokenizer(str(tmp_path / "adapter"), str(tmp_path / "model"))


def test_an_adapter_without_a_tokenizer_is_taken_as_it_is(tmp_path):
    check_tokenizer(write(tmp_path / "a"), "there/is-no-such-model")


def test_a_reference_is_named_where_an_adapter_goes_on(tmp_path):
    folder = write(tmp_path / "a")
    assert mistakes(run_of({"adapter": folder})) == {}
    found = mistakes(run_of({"adapter": folder}, {"name": "grpo", "beta": 0.1}))
    assert "set base for the model without the adapter, or start" in found["learner", "lora", "reference"]
    for reference in ("base", "start"):
        assert mistakes(run_of({"adapter": folder, "reference": reference}, {"name": "grpo", "beta": 0.1})) == {}
    assert ("learner", "lora", "reference") in mistakes(run_of({"adapter": folder, "reference": "start"}, "xpo"))
    assert mistakes(run_of({"adapter": folder, "rank": 3}))["learner", "lora", "adapter"].startswith("learner.lora.rank is 3")
    with pytest.raises(ValueError, match="a new adapter changes nothing at the start"):
        LoraConfig(reference="start")


VLLM = {"kind": "vllm", "servers": ["http://h:1"]}


@pytest.mark.parametrize(
    ("lora", "sent"),
    [
        ({}, "lora"),
        ({"variant": "rslora"}, "lora"),
        ({"variant": "dora"}, "merged"),
        ({"quantize": "4bit"}, "merged"),
        ({"modules_to_save": ["norm"]}, "merged"),
    ],
    ids=str,
)
def test_an_adapter_that_vllm_does_not_serve_is_sent_merged(lora, sent):
    config = run_of(lora, engine=VLLM)
    assert (transport_of(config) == "lora") == (sent == "lora")
    assert (whole_only(config.learner.lora) is None) == (sent == "lora")
    asked = mistakes(run_of(lora, engine=VLLM | {"transport": "lora"}))
    assert list(asked) == ([] if sent == "lora" else [("engine", "transport")])


def test_codes_are_not_sharded():
    found = mistakes(RunConfig.model_validate({"model": "m", "learner": {"lora": {"quantize": "8bit"}, "ranks": 2, "sharding": "fsdp2"}}))
    assert "set learner.sharding=ddp" in found["learner", "lora", "quantize"]


def test_an_average_is_not_evaluated_by_a_run_that_evaluates_nothing():
    config = RunConfig.model_validate({"model": "m", "env": "e", "learner": {"ema": {"evaluate": True}}})
    assert "evaluate the average in model/ema" in dict(mistakes_of_online(config, "grpo"))["learner", "ema", "evaluate"]
    assert not list(mistakes_of_online(RunConfig.model_validate({"model": "m", "env": "e", "learner": {"ema": {}}}), "grpo"))
