"""The chat template that a run names in place of its tokenizer's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError

from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.rollout.template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from transformers import PreTrainedTokenizerBase

    from agentrl.config_data import DataConfig

_ASKED, _SAID = "agentrlasked", "agentrlsaid"


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


def check_template(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
    """Raise `ConfigError` for a chat template that no row could be rendered with, or that would not show what is said.

    Args:
        tokenizer: with the template, if it has one.
        data: the run file's section.
    """
    if not tokenizer.chat_template:
        return  # told with the row that needs one
    name = f"data.chat_template {data.chat_template}" if data.chat_template else "the chat template of the model's tokenizer"
    _check_syntax(tokenizer.chat_template, name)
    template, variables = ChatTemplate(tokenizer), data.chat_template_kwargs
    written = []
    for content in (str, _as_block):
        conversation = [{"role": "user", "content": content(_ASKED)}, {"role": "assistant", "content": content(_SAID)}]
        try:
            written.append(template.render(conversation, generate=False, variables=variables))
        except EnvironmentFailure as error:
            if variables and _takes(template, conversation):
                raise ConfigError(f"{name} does not work with data.chat_template_kwargs={json.dumps(variables)}: {error}") from None
            return  # it wants other conversations than this one, which rows may be
        if _ASKED in written[-1] and _SAID in written[-1]:
            return
    shown = written[0]
    lost = "what users say" if _ASKED not in shown else "what the assistant says"
    raise ConfigError(f"{name} does not show {lost}: it renders a question and its answer as {shown[:80]!r}. Use another template")


def _check_syntax(template: str | Mapping[str, str], name: str) -> None:
    from transformers.utils import chat_template_utils

    for source in [template] if isinstance(template, str) else template.values():
        try:
            chat_template_utils._compile_jinja_template(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{name}, line {error.lineno}: {error.message}; mend the template, or name another one") from None


def _takes(template: ChatTemplate, conversation: Sequence[Mapping[str, Any]]) -> bool:
    return bool(template.tried([dict(message) for message in conversation], generate=False))


def _as_block(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
