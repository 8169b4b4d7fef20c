"""The chat templates that TRL ships: masks told by the running template beside those that TRL's own training variants mark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from templates import KINDS, tokenizer_of

from agentrl.config_data import DataConfig
from agentrl.data.encode import Encoder, Placed
from agentrl.data.faults import RowFault
from agentrl.data.marks import compiled
from agentrl.data.schemas import detect

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.trl
FOLDER = Path(trl.__file__).parent / "chat_templates"
TEXT_ONLY = sorted(path.stem for path in FOLDER.glob("*.jinja") if not re.search(r"training|idefics|llava|smolvlm", path.stem))
TALK = [
    {"role": "user", "content": "QUESTION"},
    {"role": "assistant", "content": "ANSWER"},
    {"role": "user", "content": "MORE"},
    {"role": "assistant", "content": "LAST"},
]
CONTROL = re.compile(r"<[|\uff5c][^<>{}\s'\"]+[|\uff5c]>|<\w+_of_turn>|<turn\|>|<\|turn>|\[/?INST\]")
HEADER, OPENING = "marks what the prompt that asks for a turn ends with", "marks the opening of reasoning, which is in the prompt"
OTHERWISE = {
    "deepseek_r1_distill": HEADER,
    "deepseekv3": HEADER,
    "gptoss": HEADER,
    "muse_glimmer": HEADER,
    "nemotron_3_5_lightning": OPENING,
    "nemotron_3_nano": OPENING,
    "nemotron_3_super": OPENING,
    "nemotron_3_ultra": OPENING,
    "qwen3_8": OPENING,
    "glm4moe": "writes an end behind the last turn, which the template itself does not",
    "phi3": "marks an end of the text behind the end of the last turn, at which sampling has stopped",
    "phi3_5": "marks an end of the text behind the end of the last turn, at which sampling has stopped",
}
"""Templates whose training variants differ from what is sampled behind the prompt, and how."""


def tokenizer_with(source):
    tokenizer = tokenizer_of(KINDS["chatml"])
    tokenizer.chat_template = source
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(CONTROL.findall(source)))})
    return tokenizer


def masked(source):
    encoder = Encoder(tokenizer_with(source), DataConfig(assistant_only=True))
    row = {"messages": TALK}
    (one,) = encoder.encode([Placed(row=row, found=detect(row))])
    assert not isinstance(one, RowFault), one
    text = one.example.texts[0]
    return encoder.text(text.ids), encoder.text(text.ids[text.trained])


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_each_template_tells_where_its_messages_stand_and_writes_the_same(name):
    source = (FOLDER / f"{name}.jinja").read_text()
    tokenizer = tokenizer_with(source)
    plain = tokenizer.apply_chat_template(TALK, tokenize=False)
    variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "add_generation_prompt": False}
    marked = compiled(source).render([dict(message) for message in TALK], variables)
    assert marked.text == plain
    for at, message in enumerate(TALK):
        start, end = marked.turns[at]
        assert message["content"] in plain[start:end]
        assert not any(other["content"] in plain[start:end] for other in TALK if other is not message)


@pytest.mark.parametrize("name", [name for name in TEXT_ONLY if (FOLDER / f"{name}_training.jinja").is_file()])
def test_what_is_sampled_is_what_the_training_variant_marks(name):
    text, sampled = masked((FOLDER / f"{name}.jinja").read_text())
    for words in ("ANSWER", "LAST"):
        assert words in sampled
    assert "QUESTION" not in sampled
    assert "MORE" not in sampled
    other_text, marked = masked((FOLDER / f"{name}_training.jinja").read_text())
    if name in OTHERWISE or text != other_text:  # the variant keeps reasoning that the template drops
        return
    assert re.sub(r"\s", "", sampled) == re.sub(r"\s", "", marked)
