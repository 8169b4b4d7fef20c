"""The format of a chat template, by what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollout_fakes import make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agentrl.rollout.render import Renderer
from agentrl.rollout.tool_detect import PROBE, calls_of_template, format_of
from agentrl.rollout.tool_formats.known import FORMATS
from agentrl.rollout.toolcalls import ToolCall, read_turn

OF_TRL = {
    "deepseekv3": "deepseek-v3",
    "gemma4": "gemma",
    "gemma4_v5": "gemma",
    "glm4moe": "glm",
    "gptoss": "harmony",
    "lfm2_v2": "lfm",
    "llama3_1": "llama",
    "llama3_2": "llama",
    "nemotron_3_nano": "qwen-coder",
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_5_think": "qwen-coder",
    "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
    "gemma3": None,
    "llama3": None,
    "phi3": None,
}
"""Chat templates of the models' publishers, as the package TRL ships them -> what they write calls in; None for those without calls."""


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_recognised_by_what_it_writes(name):
    written = FORMATS[name].write([PROBE])
    assert format_of(f"<|start|>assistant\nagentrlanswer\n{written}<|end|>\n", [PROBE]) is FORMATS[name]


@pytest.mark.trl
@pytest.mark.parametrize("name", OF_TRL)
def test_published_templates(name):
    import trl
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()

    def render(messages):
        try:
            return render_jinja_template(conversations=[messages], chat_template=template, bos_token="<s>", eos_token="</s>")[0][0]
        except Exception:
            return ""

    found = calls_of_template(render)
    assert (found.tool_format.name if found.recognised else None) == OF_TRL[name]
    assert found.as_text == (name == "deepseekv3")  # which joins the arguments to other text


HEAD = "{%- for message in messages %}{{ '<|start|>' + message.role + '\n' + (message.content or '') }}"
CALLS = "{%- for call in message.tool_calls or [] %}"
TAIL = "{%- endfor %}{{ '<|end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{%- endif %}"
TOOLS = "{{ tools | tojson if tools else '' }}"


def renderer_of(call):
    return Renderer(make_tokenizer(TOOLS + HEAD + CALLS + call + TAIL))


def test_a_renderer_knows_the_format_of_its_template(capsys):
    renderer = renderer_of("{{ '<TOOLCALL>[' + call.function | tojson + ']</TOOLCALL>' }}")
    assert renderer.tool_format is FORMATS["nemotron"]
    renderer.prompt([{"role": "user", "content": "hello"}], [{"type": "function", "function": {"name": "look"}}])
    assert capsys.readouterr().err == ""
    assert Renderer(make_tokenizer(None)).tool_format is FORMATS["hermes"]


def test_an_unknown_form_is_read_as_hermes_and_said_once(capsys):
    renderer = renderer_of("{{ '<<' + call.function.name + '>>' }}")
    assert renderer.tool_format is FORMATS["hermes"]
    for word in ("hello", "world"):
        renderer.prompt([{"role": "user", "content": word}], [{"type": "function", "function": {"name": "look"}}])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"the model's chat template writes tool calls in no known form; they are read as {FORMATS['hermes'].form}"


@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}'])
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_reach_a_template_in_the_form_that_it_takes(arguments, as_text):
    shown = "call.function.arguments" if as_text else "(call.function.arguments | tojson)"
    renderer = renderer_of(f"{{{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + {shown} }}}}")
    assert renderer.tool_format is FORMATS["mistral-args"]
    call = {"type": "function", "id": "c", "function": {"name": "look", "arguments": arguments}}
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = renderer._tokenizer.decode(renderer.prompt(messages).ids.tolist())
    assert json.loads(text[text.index("[ARGS]") + len("[ARGS]") : text.index("<|end|>", text.index("[ARGS]"))].replace(" ", "")) == {"x": 1}


def test_open_reasoning_is_known_by_the_marks_of_the_format():
    renderer = renderer_of("{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}")
    assert renderer.prompt("hello [THINK]").thinking
    assert not renderer.prompt("hello <seed:think>").thinking


LOOK = {
    "name": "look",
    "description": "Look.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}},
}
SPECIAL = {
    "gptoss": ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|call|>", "<|return|>", "<|constrain|>"],
    "glm4moe": ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "<tool_call>", "</tool_call>"],
    "gemma4_v5": ["<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"],
    "lfm2_v2": ["<|im_start|>", "<|im_end|>", "<|tool_call_start|>", "<|tool_call_end|>"],
    "llama3_1": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "qwen3_5_nothink": ["<|im_start|>", "<|im_end|>"],
}
ENDS = {"gptoss": "<|call|>", "glm4moe": "<|observation|>", "gemma4_v5": "<|tool_response>", "llama3_1": "<|eot_id|>"}
"""What ends a turn with calls; `<|im_end|>` for the others."""


def byte_tokenizer(special, template):
    core = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.trl
@pytest.mark.parametrize("name", SPECIAL)
def test_a_result_follows_a_call_as_the_published_template_writes_it(name):
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    tokenizer = byte_tokenizer(SPECIAL[name], template)
    renderer = Renderer(tokenizer)
    tools = [{"type": "function", "function": LOOK}]
    call = {"type": "function", "id": "call00000", "function": {"name": "look", "arguments": {"city": "Rome"}}}
    result = {"role": "tool", "name": "look", "tool_call_id": "call00000", "content": "sunny"}
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.decode(renderer.prompt(messages[:1], tools).ids.tolist())
    later = tokenizer.decode(renderer.extension([result], tools, last_id=-1).ids.tolist())
    assert whole.endswith(later)
    assert whole.startswith(prompt)
    said = whole[len(prompt) : -len(later)]
    assert read_turn(said, tools, tool_format=renderer.tool_format).calls == (ToolCall(name="look", arguments={"city": "Rome"}),)
    end = tokenizer.convert_tokens_to_ids(ENDS.get(name, "<|im_end|>"))
    assert later.startswith(tokenizer.decode([end]))
    assert end in renderer.stop_ids
    ended = renderer.extension([result], tools, last_id=end)
    assert tokenizer.decode([end, *ended.ids.tolist()]) == later
    assert "<|end|>" not in map(tokenizer.decode, renderer.stop_ids)
