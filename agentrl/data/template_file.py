"""The chat template that a run names in place of its tokenizer's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from agentrl.config_data import DataConfig


def with_template(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with the template of `data.chat_template`; itself where there is none.

    Raises `ConfigError` for a file that cannot be read.
    """
    if data.chat_template is None:
        return tokenizer
    path = Path(data.chat_template).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.chat_template is {data.chat_template}, and that file cannot be read: {error}") from None
    other = copy.copy(tokenizer)
    other.chat_template = text
    return other
