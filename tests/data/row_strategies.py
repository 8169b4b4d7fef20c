"""Rows of every schema, for property tests."""

from __future__ import annotations

import copy

from hypothesis import strategies as st

from agentrl.data.schemas import Found

characters = st.characters(codec="utf-8")
texts = st.text(characters, max_size=12)
words = st.text(characters, min_size=1, max_size=12).filter(lambda text: text.strip() and text[0] not in "[ \n\t")
"""Texts that say something, and are not taken for lists."""
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)
arguments = st.dictionaries(words, json_values, max_size=3)
calls = st.builds(lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}}, words, arguments)
users = st.builds(lambda text: {"role": "user", "content": text}, texts)
systems = st.builds(lambda text: {"role": "system", "content": text}, texts)
results = st.builds(lambda text, name: {"role": "tool", "name": name, "content": text}, texts, words)
spoken = st.builds(lambda text: {"role": "assistant", "content": text}, words)
reasoned = st.builds(lambda text, thought: {"role": "assistant", "content": text, "reasoning_content": thought}, words, words)
calling = st.builds(lambda made: {"role": "assistant", "content": "", "tool_calls": made}, st.lists(calls, min_size=1, max_size=2))
answers = spoken | reasoned | calling
tools = st.lists(
    st.builds(lambda name, given: {"type": "function", "function": {"name": name, "parameters": given}}, words, arguments),
    min_size=1,
    max_size=2,
)
extras = st.fixed_dictionaries({}, optional={"tools": tools, "source": texts, "chat_template_kwargs": arguments})


@st.composite
def prompts(draw):
    """Messages up to the one that is answered."""
    start = draw(st.lists(systems, max_size=1))
    turns = draw(st.lists(st.tuples(users, answers), max_size=2))
    return [*start, *(message for turn in turns for message in turn), draw(users)]


@st.composite
def completions(draw):
    """What the assistant says, with the results of its calls in between."""
    rounds = draw(st.lists(st.tuples(calling, results), max_size=1))
    return [*(message for one in rounds for message in one), draw(spoken | reasoned)]


@st.composite
def prompt_completion(draw, conversational):
    return {
        "prompt": draw(prompts() if conversational else texts),
        "completion": draw(completions() if conversational else words),
        **draw(extras),
    }


@st.composite
def preference(draw, conversational):
    """With a prompt; the completions differ from their first message or character on."""
    make = completions() if conversational else words
    prompt, chosen, rejected = draw(prompts() if conversational else texts), draw(make), draw(make)
    if chosen[0] == rejected[0]:
        rejected = (
            [{"role": "assistant", "content": f"{chosen[0]['content']}!"}]
            if conversational
            else ("y" if chosen[0] == "x" else "x") + rejected
        )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": draw(st.integers(0, 3)), **draw(extras)}


@st.composite
def stepwise(draw):
    steps = draw(st.lists(words, min_size=1, max_size=4))
    return {"prompt": draw(words), "completions": steps, "labels": draw(st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)))}


@st.composite
def rows(draw):
    """A row of any schema, and the schema."""
    conversational = draw(st.booleans())
    plain = draw(prompt_completion(conversational))
    made = {
        "language_modeling": {"messages": plain["prompt"] + plain["completion"]} if conversational else {"text": draw(words)},
        "prompt_only": {"prompt": plain["prompt"] or "x"},
        "prompt_completion": plain,
        "preference": draw(preference(conversational)),
        "unpaired_preference": {**plain, "label": draw(st.booleans())},
        "stepwise": draw(stepwise()),
        "tokenized": {"input_ids": draw(st.lists(st.integers(0, 9), min_size=2, max_size=5))},
    }
    schema = draw(st.sampled_from(sorted(made)))
    row = made[schema]
    if schema == "prompt_only" and not conversational and not row["prompt"].strip():
        row = {"prompt": "x"}
    return row, Found(schema=schema, conversational=conversational and schema not in {"stepwise", "tokenized"})


@st.composite
def mutated(draw):
    """A row in which something, at whatever depth, is something else, or is missing."""
    row, found = draw(rows())
    row = copy.deepcopy(row)
    inner = row
    while True:
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        key = draw(st.sampled_from(keys))
        if isinstance(inner[key], dict | list) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            continue
        if draw(st.booleans()):
            inner[key] = draw(
                json_values | st.sampled_from(["[{", '[{"from": 1, "value": 2}]', [{"from": "gpt", "value": 1}], [{}], float("nan"), -1])
            )
        elif isinstance(inner, dict):
            inner[draw(st.sampled_from(["from", "value", "conversations", "system", "messages", "label", "role", "x"]))] = inner.pop(key)
        else:
            del inner[key]
        return row, found
