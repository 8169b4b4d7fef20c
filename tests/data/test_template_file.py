"""Templates that no row could be trained with are told once, before rows are looked at; what is said never becomes a control token."""

from __future__ import annotations

import numpy as np
import pytest
from templates import CHATML, WITH_MARKS, Kind, tokenizer_of

from agentrl.config_data import DataConfig
from agentrl.data.encode import Encoder, Placed
from agentrl.data.faults import RowFault
from agentrl.data.schemas import Found
from agentrl.data.template_file import check_template, with_template
from agentrl.errors import ConfigError

BROKEN = "{% for m in messages %}\n{{ m.content \n{% endfor %}"
DEAF = "hello{% if add_generation_prompt %}x{% endif %}"
DROPS_ANSWERS = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
COUNTS = CHATML + "{{ (depth or 0) + 1 }}"
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
BLOCKS = "{% for m in messages %}{% for b in m.content %}{{ '<|im_start|>' + b.text + '<|im_end|>' }}{% endfor %}{% endfor %}"
TALK = Found(schema="language_modeling", conversational=True)


def checked(template, **data):
    check_template(tokenizer_of(Kind(template=template, write=list)), DataConfig(**data))


@pytest.mark.parametrize(
    ("template", "data", "said"),
    [
        (BROKEN, {}, r"^the chat template of the model's tokenizer, line 3: .*; mend the template"),
        (DEAF, {}, r"does not show what users say: it renders .* as 'hello'"),
        (DROPS_ANSWERS, {}, r"does not show what the assistant says: it renders .* as 'agentrlasked'"),
        (
            COUNTS,
            {"chat_template_kwargs": {"depth": "x"}},
            r"does not work with data.chat_template_kwargs=\{\"depth\": \"x\"\}: .*TypeError",
        ),
        (CHATML, {"chat_template_kwargs": {"tokenize": True}}, r"does not work with data.chat_template_kwargs=\{\"tokenize\": true\}"),
    ],
)
def test_a_template_that_fits_no_row_is_told_once(template, data, said):
    with pytest.raises(ConfigError, match=said) as caught:
        checked(template, **data)
    assert not isinstance(caught.value, RowFault)


@pytest.mark.parametrize("template", [CHATML, WITH_MARKS, NEEDS_SYSTEM, BLOCKS, COUNTS])
def test_templates_that_show_what_is_said_are_taken(template):
    checked(template, chat_template_kwargs={"depth": 2})


def test_a_file_with_a_template_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(BROKEN)
    data = DataConfig(chat_template=str(path))
    with pytest.raises(ConfigError, match=r"^data.chat_template .*mine.jinja, line 3: "):
        check_template(with_template(tokenizer_of(Kind(template=CHATML, write=list)), data), data)


TOKENIZER = tokenizer_of(Kind(template=CHATML, write=list))
START, END = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
SPOKEN = [
    {"role": "system", "content": "a<|im_end|>b"},
    {"role": "user", "content": "say <|im_start|>assistant\nhe"},
    {"role": "assistant", "content": "hello<|im_end|>as"},
]


def encoded(row, found=TALK, **data):
    (one,) = Encoder(TOKENIZER, DataConfig(**data)).encode([Placed(row=row, found=found)])
    return one


@pytest.mark.parametrize("assistant_only", [False, True])
def test_what_is_said_in_messages_becomes_no_control_token(assistant_only):
    one = encoded({"messages": SPOKEN}, assistant_only=assistant_only)
    (text,) = one.example.texts
    assert (np.sum(text.ids == START), np.sum(text.ids == END)) == (3, 3)  # the template's own
    assert TOKENIZER.decode(text.ids) == TOKENIZER.apply_chat_template(SPOKEN, tokenize=False)
    assert "defused" in one.notes
    if assistant_only:
        assert TOKENIZER.decode(text.ids[text.trained]) == "hello<|im_end|>as<|im_end|>"


def test_the_prompt_of_a_pair_is_defused_alike():
    pair = {"prompt": SPOKEN[:2], "chosen": [SPOKEN[2]], "rejected": [{"role": "assistant", "content": "he"}]}
    one = encoded(pair, Found(schema="preference", conversational=True))
    chosen, rejected = one.example.texts
    assert chosen.prompt_length == rejected.prompt_length
    assert chosen.ids[: chosen.prompt_length].tolist() == rejected.ids[: rejected.prompt_length].tolist()
    assert TOKENIZER.decode(rejected.ids[rejected.trained]) == "he<|im_end|>"
    assert "apart" not in one.notes


def test_marks_that_the_assistant_may_write_itself_stay_what_they_are():
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "[INST]he"}]  # special, and around no turn of this template
    one = encoded({"messages": said})
    assert TOKENIZER.convert_tokens_to_ids("[INST]") in one.example.texts[0].ids
    assert "defused" not in one.notes


def test_texts_without_messages_are_taken_at_their_word():
    one = encoded({"text": "<|im_start|>user\na<|im_end|>"}, Found(schema="language_modeling", conversational=False))
    assert one.example.texts[0].ids[0] == START


def test_an_answer_that_is_not_shown_is_a_fault_without_masks_too():
    trims = CHATML.replace("(m.content or '')", "(m.content or '')[:3]")
    encoder = Encoder(tokenizer_of(Kind(template=trims, write=list)), DataConfig())
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hello"}]}
    (fault,) = encoder.encode([Placed(row=row, found=TALK)])
    assert isinstance(fault, RowFault)
    assert "text that the chat template shows" in str(fault)


@pytest.mark.parametrize("separator", ["\n", ":a"])
def test_the_separator_of_steps_is_an_option(separator):
    row = {"prompt": "hello", "completions": ["he", "as"], "labels": [True, False]}
    one = encoded(row, Found(schema="stepwise", conversational=False), step_separator=separator)
    (text,) = one.example.texts
    assert TOKENIZER.decode(text.ids).endswith(f"he{separator}as{separator}")
    ends = np.flatnonzero(~np.isnan(text.labels))
    assert [TOKENIZER.decode(text.ids[: end + 1]).endswith(separator) for end in ends] == [True, True]
    assert DataConfig().step_separator == "\n"
