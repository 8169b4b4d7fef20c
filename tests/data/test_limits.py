"""What a model's configuration says of its texts."""

from __future__ import annotations

import pytest

from agentrl.config_data import DataConfig
from agentrl.data.limits import limits_of
from agentrl.data.template_file import with_template
from agentrl.errors import ConfigError
from agentrl.quickstart import model_path


def test_positions_and_vocabulary_are_read_where_there_is_a_configuration(tmp_path):
    found = limits_of(model_path())
    assert found["positions"] > 0
    assert found["vocabulary"] > 0
    assert limits_of(str(tmp_path)) == {"positions": None, "vocabulary": None}


def test_a_template_that_is_no_text_is_told(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"template.jinja, and that file cannot be read: 'utf-8'"):
        with_template(None, DataConfig(chat_template=str(file)))
