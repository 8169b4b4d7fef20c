from __future__ import annotations

import pytest

from agentrl import runfile
from agentrl.errors import AgentRLError, ConfigError, PublishError, SamplerUnavailable
from agentrl.session import Session, environment_spec, resolve_model


def model_folder(tmp_path, *files):
    for name in files:
        (tmp_path / name).write_text("{}")
    return str(tmp_path)


def test_a_folder_without_a_model_or_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder without config.json; give a folder that .* save_pretrained wrote"):
        resolve_model(model_folder(tmp_path))
    with pytest.raises(ConfigError, match=r"has no tokenizer files; save one beside it with tokenizer.save_pretrained"):
        resolve_model(model_folder(tmp_path, "config.json"))
    assert resolve_model(model_folder(tmp_path, "config.json", "tokenizer.json")) == str(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        resolve_model(str(tmp_path / "nothing"))
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))
    assert resolve_model("someone/some-model") == "someone/some-model"


def test_the_spec_of_a_dataset_can_be_read():
    config = runfile.from_mapping({"model": "m", "dataset": "data/rows.jsonl", "rewards": ["mine.py:exact", "other:f"]})
    assert environment_spec(config) == "dataset?path=data/rows.jsonl&rewards=mine.py:exact,other:f"


class EndedEngine:
    """An engine process that has ended."""

    def __init__(self):
        self.child = self

    def ended(self):
        return True

    def describe_end(self):
        return "the engine was killed"

    def stop(self):
        pass


@pytest.mark.parametrize("error", [SamplerUnavailable("no answer"), PublishError("no answer")])
def test_the_end_of_the_engine_explains_what_fails_without_it(tmp_path, error):
    with Session(runfile.from_mapping({"model": "quickstart", "env": "arithmetic"}), tmp_path) as session:
        assert session.explained(error) is error
        session._engine = EndedEngine()
        assert str(session.explained(error)) == "the engine was killed"
        other = AgentRLError("something else")
        assert session.explained(other) is other
