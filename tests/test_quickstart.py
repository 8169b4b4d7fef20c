import random
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl.envs.arithmetic import arithmetic
from agentrl.envs.lookup import Lookup
from agentrl.quickstart import model_path
from agentrl.quickstart.build import Recipe, build, encode, make_tokenizer
from agentrl.quickstart.formats import FORMATS, TOOLS, careless_sum, lookup, sums
from agentrl.quickstart.tokenizer import MARKERS, ROLES
from agentrl.rollout.toolcalls import ToolCall, extract_calls
from agentrl.rollout.tools import describe_tools

SAMPLES = 200


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_path()).eval()


def first_turns(model, tokenizer, prompts, tools=None, max_new_tokens=32):
    """Text of a sampled first turn for each prompt, None where the turn did not end."""
    torch.manual_seed(0)
    inputs = tokenizer.apply_chat_template(
        prompts, tools=tools, add_generation_prompt=True, return_dict=True, padding=True, padding_side="left", return_tensors="pt"
    )
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens)
    turns = [tokenizer.decode(row).split(tokenizer.eos_token) for row in ids[:, inputs["input_ids"].shape[1] :]]
    return [turn[0] if len(turn) > 1 else None for turn in turns]


def test_the_model_is_small_and_fits_its_tokenizer(model, tokenizer):
    assert sum(parameter.numel() for parameter in model.parameters()) <= 2_000_000
    assert model.config.head_dim == 32
    assert model.config.max_position_embeddings >= 1024
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_first_answers_have_the_right_form_and_are_often_wrong(model, tokenizer):
    rows = [arithmetic().tasks("eval")[at] for at in range(SAMPLES)]
    turns = first_turns(model, tokenizer, [row["prompt"] for row in rows])
    boxes = [re.fullmatch(r"\\boxed\{(\d+)\}", turn or "") for turn in turns]
    right = sum(box is not None and box[1] == row["answer"] for box, row in zip(boxes, rows, strict=True))
    assert sum(box is not None for box in boxes) >= 0.95 * SAMPLES
    assert 0.2 * SAMPLES <= right <= 0.45 * SAMPLES


def test_first_tool_calls_can_be_made(model, tokenizer):
    tasks = Lookup().tasks("eval")
    prompts = [[{"role": "user", "content": tasks[at]["prompt"]}] for at in range(SAMPLES)]
    tools = [tool.schema for tool in describe_tools(Lookup()).values()]
    calls = [extract_calls(turn or "") for turn in first_turns(model, tokenizer, prompts, tools, max_new_tokens=64)]
    good = [made for made in calls if made and all(isinstance(call, ToolCall) and call.name == "lookup" for call in made)]
    assert len(good) >= 0.95 * SAMPLES


def test_a_rendered_tool_conversation_parses_back(tokenizer):
    for seed in range(20):
        example = lookup(random.Random(seed))
        ids, learned = encode(tokenizer, example)
        turns, turn = [], []
        for token, mask in zip(ids, learned, strict=True):
            if mask:
                turn.append(token)
                if token == tokenizer.eos_token_id:
                    turns.append(tokenizer.decode(turn, skip_special_tokens=True))
                    turn = []
        assert not turn, "every assistant turn ends with the end token"
        spoken = [message for message in example.messages if message["role"] == "assistant"]
        assert len(turns) == len(spoken)
        for text, message in zip(turns, spoken, strict=True):
            wanted = [
                ToolCall(name=call["function"]["name"], arguments=call["function"]["arguments"]) for call in message.get("tool_calls", [])
            ]
            assert extract_calls(text) == wanted
            assert wanted or text == message["content"]


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"plain_sums"}))
def test_a_longer_conversation_begins_with_the_shorter_one(tokenizer, name):
    example = FORMATS[name][0](random.Random(1))
    messages, tools = list(example.messages), list(example.tools) or None
    rendered = [tokenizer.apply_chat_template(messages[:length], tools=tools, tokenize=False) for length in range(1, len(messages) + 1)]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(rendered))


def test_markers_and_digits_are_single_tokens(tokenizer):
    for mark in (*ROLES, *MARKERS, "\\boxed{", *"0123456789"):
        assert len(tokenizer.encode(mark)) == 1, mark
    assert len(tokenizer.encode("1234")) == 4
    kept = tokenizer.decode(tokenizer.encode("<|user|>a<tool_call>b</tool_call><|end|>"), skip_special_tokens=True)
    assert kept == "a<tool_call>b</tool_call>"


@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_foreign_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="roles are system"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "no"}], tokenize=False)


def test_the_warm_up_shows_no_held_out_task():
    held_out = {row["prompt"][0]["content"] for row in arithmetic().tasks("eval")}
    stream = random.Random(0)
    shown = {sums(stream).messages[0]["content"] for _ in range(2000)}
    assert len(shown) > 1000
    assert not shown & held_out


def test_the_warm_up_has_the_tools_of_the_environment():
    offered = [tool.schema["function"] for tool in describe_tools(Lookup()).values()]
    for shown, real in zip(TOOLS, offered, strict=True):
        function = shown["function"]
        assert (function["name"], function["description"]) == (real["name"], real["description"])
        kinds = [{name: value["type"] for name, value in schema["parameters"]["properties"].items()} for schema in (function, real)]
        assert kinds[0] == kinds[1]


def test_the_demonstrator_is_right_for_a_minority():
    stream = random.Random(0)
    tries = [(stream.randint(10, 99), stream.randint(10, 99)) for _ in range(3000)]
    right = sum(careless_sum(a, b, stream) == a + b for a, b in tries)
    assert 0.25 <= right / len(tries) <= 0.4


def test_the_shipped_tokenizer_is_the_scripts(tokenizer):
    made = make_tokenizer(Recipe())
    assert made.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert made.chat_template == tokenizer.chat_template


def test_the_script_gives_the_same_weights_for_a_seed(tmp_path):
    losses = []
    recipe = Recipe(seed=3, steps=2, corpus=5, hidden=32, layers=1)
    for name in ("one", "two"):
        build(tmp_path / name, recipe, lambda step, loss: losses.append((step, loss)))
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    assert [step for step, _ in losses] == [1, 2, 1, 2]
    assert losses[:2] == losses[2:]
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=0, atol=1e-6)
    assert not any(torch.equal(weight, torch.zeros_like(weight)) for weight in one.values())
    assert AutoTokenizer.from_pretrained(tmp_path / "one").chat_template
