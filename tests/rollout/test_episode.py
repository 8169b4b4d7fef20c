"""Episodes with a scripted engine and real environments: token identity, budgets, tools, endings, failures."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fakes import ENV, TEMPLATES, FakeEngine, in_turn, make_task, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.engines.protocol import Completion
from agentrl.errors import ConfigError, SamplerUnavailable
from agentrl.records import SamplingContract, Score, Source, Version
from agentrl.rollout.episode import play_episode, play_group
from agentrl.rollout.messages import Observation, Opened
from agentrl.rollout.pool import EnvironmentTimeout
from agentrl.rollout.render import Renderer
from agentrl.rollout.tool_formats.hermes import HERMES
from agentrl.rollout.tool_formats.pythonic import LLAMA_PYTHONIC
from agentrl.rollout.tree import Sampler, request_seed
from agentrl.rows import rows_of

TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)
CONTRACT = SamplingContract(temperature=0.7)
CHAT = [{"role": "user", "content": "hi"}]


def play(
    script,
    *,
    name="Guess",
    row=None,
    engine=None,
    renderer=RENDERER,
    context_length=4096,
    members=None,
    seed=3,
    rollout=None,
    pool=None,
    others=None,
    **sampling,
):
    """Play one episode, or a group of `members`; also the engine that was asked."""
    engine = engine or FakeEngine(script, renderer._tokenizer, context_length=context_length)
    arguments = {
        "sampler": Sampler(engine=engine, renderer=renderer, contract=CONTRACT),
        "others": others or {},
        "sampling": SamplingConfig(**sampling),
        "rollout": rollout or RolloutConfig(),
        "seed": seed,
    }

    async def main():
        async with pool or thread_pool(f"{ENV}:{name}") as environments:
            task = make_task(**{"prompt": CHAT, **(row or {})})
            if members is None:
                return await play_episode(task, 0, pool=environments, **arguments)
            return await play_group(task, members, pool=environments, **arguments)

    return trio.run(main), engine


def call(name, arguments="{}"):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def roles(rollout):
    return [message["role"] for message in rollout.messages]


def test_one_turn_is_recorded_exactly():
    rollout, engine = play(in_turn("echo"))
    (request,), (completion,) = engine.requests, engine.completions
    (turn,) = rollout.turns
    shift = len(request.ids)
    assert request.ids.tolist() == RENDERER.prompt(CHAT, tools_of("Guess")).ids.tolist()
    assert (request.contract, request.stop_ids, request.max_tokens) == (CONTRACT, RENDERER.stop_ids, 256)
    assert (turn.parent, turn.contract, turn.finish_reason) == (-1, CONTRACT, "stop")
    assert turn.span.ids.tolist() == [*request.ids.tolist(), *completion.ids.tolist()]
    assert turn.span.source.tolist() == [Source.PROMPT] * shift + [Source.SAMPLED] * len(completion.ids)
    assert turn.span.logprobs[shift:].tolist() == completion.logprobs.tolist()
    assert [(run.start - shift, run.end - shift, run.version) for run in turn.span.versions] == [
        (run.start, run.end, run.version) for run in completion.versions
    ]
    assert rollout.messages == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "echo"})
    assert (rollout.ending, rollout.reason, rollout.score) == ("complete", "", Score(value=float(len(completion.ids))))
    assert rollout.counters["turns"] == 1
    assert rollout.counters["tokens/sampled"] == len(completion.ids)
    assert rollout.counters["time/episode_s"] >= rollout.counters["time/engine_s"] > 0


def tools_of(name):
    async def main():
        async with thread_pool(f"{ENV}:{name}") as pool:
            return (await pool.open(make_task())).opened.tools

    return trio.run(main)


def test_tools_run_in_order_and_their_results_are_appended():
    first = call("look", '{"count": "2"}') + "\n" + call("total")
    rollout, engine = play(in_turn(first, call("finish")))
    assert roles(rollout) == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [message["content"] for message in rollout.messages if message["role"] == "tool"] == ["xx", "1", ""]
    assert rollout.messages[1]["content"] == first
    assert [entry["function"] for entry in rollout.messages[1]["tool_calls"]] == [
        {"name": "look", "arguments": {"count": 2}},
        {"name": "total", "arguments": {}},
    ]
    assert rollout.ending == "complete"
    assert rollout.counters["tool/calls"] == 3
    given = rollout.turns[1].span.ids[~rollout.turns[1].span.sampled]
    assert TOKENIZER.decode(given) == "\n<|start|>tool\nxx<|end|>\n<|start|>tool\n1<|end|>\n<|start|>assistant\n"
    assert set(rollout.turns[1].span.source[: len(given)]) == {Source.ENVIRONMENT}
    assert engine.requests[1].ids.tolist() == [*rollout.turns[0].span.ids.tolist(), *given.tolist()]
    assert engine.requests[0].session == engine.requests[1].session != ""


def test_calls_are_read_in_the_form_that_the_template_writes_them_in():
    renderer = Renderer(TOKENIZER)
    renderer.tool_format = LLAMA_PYTHONIC
    rollout, _ = play(in_turn('[look(count="2"), total()]', "[finish()]"), renderer=renderer)
    assert [message["content"] for message in rollout.messages if message["role"] == "tool"] == ["xx", "1", ""]
    assert "tool/malformed" not in rollout.counters


def test_mistakes_of_the_model_are_observations():
    text = "<tool_call>{oops</tool_call>" + call("fly") + call("look", '{"count": "many"}') + call("look", "[1]") + call("boom")
    rollout, _ = play(in_turn(text, "done"))
    assert [message["content"] for message in rollout.messages if message["role"] == "tool"] == [
        f"error: invalid JSON: Expecting property name enclosed in double quotes; write {HERMES.form}",
        f'error: unknown tool: there is no "fly"; tools: {", ".join(tool["function"]["name"] for tool in tools_of("Guess"))}',
        'error: invalid arguments: count must be an integer, got "many"',
        f"error: arguments are not an object: got a list; write {HERMES.form}",
        "error: KeyError: 'no such place'",
    ]
    assert {key: rollout.counters[f"tool/{key}"] for key in ("calls", "malformed", "errors")} == {"calls": 5, "malformed": 4, "errors": 1}
    assert (rollout.ending, rollout.score.value) == ("complete", 1.0)


def test_calls_in_reasoning_are_not_run():
    prefilled = Renderer(make_tokenizer(TEMPLATES["think_prefilling"]))
    rollout, _ = play(in_turn(f"maybe {call('boom')}</think>{call('look')}", "</think>done"), renderer=prefilled)
    assert [message["content"] for message in rollout.messages if message["role"] == "tool"] == ["x"]
    unclosed, _ = play(in_turn(call("boom")), renderer=prefilled)
    assert roles(unclosed) == ["user", "assistant"]


def test_a_dialog_goes_on_until_the_environment_ends_it():
    rollout, _ = play(in_turn("a", "bcd", "enough"), name="Dialog")
    assert [message["content"] for message in rollout.messages] == ["hi", "a", "you said 1", "bcd", "you said 3", "enough", "you said 6"]
    assert (rollout.ending, len(rollout.turns), rollout.score.value) == ("complete", 3, 7.0)
    ended, _ = play(in_turn("bye"), name="Dialog")
    assert (ended.ending, ended.score.value) == ("complete", 2.0)


def test_plain_text_prompts_go_on_as_plain_text():
    renderer = Renderer(make_tokenizer(None))
    rollout, engine = play(in_turn("a", "bye"), name="Dialog", row={"prompt": "hello "}, renderer=renderer)
    assert renderer.text(engine.requests[1].ids) == "hello a<|end|>you said 1"
    assert rollout.messages[0] == {"role": "user", "content": "hello "}


@pytest.mark.parametrize(
    ("options", "turns", "sampled"),
    [
        ({"max_turns": 2}, 2, None),
        ({"max_tokens": 3}, 1, 3),
        ({"context_length": 80}, 2, None),
        ({"max_episode_tokens": 80}, 2, None),
    ],
)
def test_every_exhausted_budget_truncates(options, turns, sampled):
    rollout, engine = play(in_turn("keep talking"), name="Dialog", **options)
    assert (rollout.ending, len(rollout.turns)) == ("truncated", turns)
    assert rollout.score.scorable
    limit = options.get("context_length") or options.get("max_episode_tokens") or engine.context_length
    assert all(len(request.ids) + request.max_tokens <= limit for request in engine.requests)
    assert sampled is None or rollout.num_sampled == sampled


def test_a_long_tool_result_truncates_and_is_not_an_error():
    renderer = Renderer(make_tokenizer(None))
    rollout, engine = play(in_turn(call("look", '{"count": 200}')), row={"prompt": "hi"}, renderer=renderer, context_length=64)
    assert (rollout.ending, rollout.reason, len(rollout.turns)) == ("truncated", "", 1)
    assert rollout.score.value == 1.0
    assert len(rollout.messages[-1]["content"]) == 200
    assert len(engine.requests) == 1


def test_the_last_tokens_of_the_context_can_be_used():
    prompt = len(RENDERER.prompt(CHAT).ids)
    exactly, engine = play(in_turn("abc"), name="Dialog", context_length=prompt + 1)
    assert (exactly.ending, exactly.num_sampled, engine.requests[0].max_tokens) == ("truncated", 1, 1)
    none, engine = play(in_turn("abc"), name="Dialog", context_length=prompt)
    assert (none.ending, none.turns, engine.requests) == ("truncated", (), [])
    assert none.score == Score.unscorable(f"prompt of {prompt} tokens does not fit in context {prompt} with one sampled token")
    short, _ = play(in_turn("abc"), name="Dialog", max_episode_tokens=5)
    assert "does not fit in sampling.max_episode_tokens 5" in short.score.reason


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (in_turn("nan"), "score: .*returned nan"),
        (in_turn("raise"), "score: ZeroDivisionError"),
        (in_turn(call("infrastructure")), "tool infrastructure: the sandbox is down"),
    ],
)
def test_failures_of_the_environment_are_unscorable(script, reason):
    rollout, _ = play(script)
    assert rollout.ending == "environment_error"
    assert not rollout.score.scorable
    assert rollout.reason == rollout.score.reason
    assert re.search(reason, rollout.reason)
    assert len(rollout.turns) == 1


def test_a_failed_start_is_unscorable():
    rollout, engine = play(in_turn("x"), name="Odd", row={"kind": "number"})
    assert (rollout.ending, rollout.turns, rollout.messages, engine.requests) == ("environment_error", (), (), [])
    assert "start: it returned a int: 3" in rollout.reason


def test_an_unscorable_score_keeps_its_ending():
    rollout, _ = play(in_turn("none"))
    assert (rollout.ending, rollout.score.value) == ("complete", None)


def test_completions_of_nothing_and_of_broken_text_survive():
    empty, _ = play(in_turn([]))
    assert (empty.ending, empty.num_sampled, empty.messages[-1]["content"]) == ("complete", 0, "")
    broken, engine = play(in_turn([*TOKENIZER.encode("\U0001f600")[:2], RENDERER.stop_ids[0]]))
    assert broken.messages[-1]["content"] == "\ufffd"
    assert broken.turns[0].span.ids[broken.turns[0].span.sampled].tolist() == engine.completions[0].ids.tolist()


def test_the_engines_failures_are_raised_and_everything_is_closed():
    with pytest.raises(SamplerUnavailable, match="gone"):
        play(in_turn(SamplerUnavailable("gone")))
    with pytest.raises(SamplerUnavailable, match="gone"):
        play(in_turn("echo", SamplerUnavailable("gone")), members=4)


class LyingEngine:
    """Gives no log-prob for its last token."""

    context_length = 100

    async def generate(self, request):
        return Completion(ids=np.array([1, 2]), logprobs=np.array([-1.0, np.nan]), versions=(), finish_reason="stop")


def test_a_completion_without_logprobs_is_the_engines_failure():
    with pytest.raises(SamplerUnavailable, match="no log-prob"):
        play(None, engine=LyingEngine(), name="Dialog")


def test_an_aborted_request_is_unscorable():
    class Aborting(LyingEngine):
        async def generate(self, request):
            return Completion(ids=np.zeros(0, dtype=np.int32), logprobs=np.zeros(0), versions=(), finish_reason="abort")

    rollout, _ = play(None, engine=Aborting(), name="Dialog")
    assert (rollout.ending, rollout.score.scorable) == ("cancelled", False)


def test_tools_that_the_template_hides_are_a_wrong_configuration():
    with pytest.raises(ConfigError, match="does not show tools"):
        play(in_turn("x"), renderer=Renderer(make_tokenizer("{{ messages[0].content }}")))


def test_members_are_ordered_and_draw_from_streams_of_their_own():
    group, engine = play(lambda request: [5] * (request.seed % 7), members=6, max_tokens=9)
    assert [rollout.member for rollout in group] == list(range(6))
    assert [request.seed for request in sorted(engine.requests, key=lambda request: request.seed)] == sorted(
        request_seed(f"3\n{group[0].task.id}\n{member}", 0) for member in range(6)
    )
    again, _ = play(lambda request: [5] * (request.seed % 7), members=6, max_tokens=9)
    assert [rollout.num_sampled for rollout in again] == [rollout.num_sampled for rollout in group]
    assert len({request_seed(stream, turn) for stream in "ab" for turn in range(50)}) == 100
    assert len({request.session for request in engine.requests}) == 6


class SlowSession:
    """An environment whose tool takes forever, on the test's own clock."""

    opened = Opened(call=0, prompt="hi", tools=[{"name": "look"}], max_turns=None, max_tokens=None, replies=False)

    def __init__(self, log, fails=None):
        self._log, self._fails = log, fails

    async def call_tool(self, name, arguments):
        if self._fails is not None:
            raise self._fails
        await trio.sleep_forever()
        return Observation(call=0, text="", done=False)

    async def score(self, episode):
        self._log.append("scored")
        return Score(value=0.0)

    def close(self):
        self._log.append("closed")


class SlowPool:
    def __init__(self, log, fails=None):
        self._log, self._fails = log, fails

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        return None

    async def open(self, task):
        return SlowSession(self._log, self._fails)


def play_slowly(cancel_after=float("inf"), fails=None):
    log = []

    async def main():
        with trio.move_on_after(cancel_after):
            return await play_episode(
                make_task(),
                0,
                sampler=Sampler(engine=FakeEngine(in_turn(call("look")), TOKENIZER), renderer=RENDERER, contract=CONTRACT),
                others={},
                pool=SlowPool(log, fails),
                sampling=SamplingConfig(),
                rollout=RolloutConfig(),
                seed=0,
            )

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)), log


def test_the_episodes_deadline_ends_it_unscored():
    rollout, log = play_slowly()
    assert (rollout.ending, rollout.reason) == ("timeout", "the episode took longer than 600 s")
    assert not rollout.score.scorable
    assert rollout.counters["time/episode_s"] == rollout.counters["time/env_s"] == 600
    assert len(rollout.turns) == 1
    assert log == ["closed"]


def test_a_tools_deadline_ends_it_unscored():
    rollout, log = play_slowly(fails=EnvironmentTimeout("tool look took longer than 30 s"))
    assert (rollout.ending, rollout.score.reason, log) == ("timeout", "tool look took longer than 30 s", ["closed"])


def test_cancelling_closes_the_environment():
    rollout, log = play_slowly(cancel_after=5)
    assert rollout is None
    assert log == ["closed"]


RENDERERS = {name: Renderer(make_tokenizer(template)) for name, template in TEMPLATES.items()} | {"plain": Renderer(make_tokenizer(None))}
PIECES = [
    "he",
    "ll",
    "o",
    "h",
    "\U0001f600",
    " as",
    "a",
    "s",
    "<think>",
    "</think>",
    "<|start|>",
    call("look", '{"count": "3"}'),
    call("total"),
    "{",
]


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(RENDERERS)),
    st.lists(st.lists(st.one_of(st.sampled_from(PIECES), st.integers(0, 255)), max_size=6), min_size=1, max_size=4),
    st.sampled_from(["Guess", "Dialog"]),
    st.integers(60, 400),
    st.booleans(),
)
def test_trained_ids_are_sampled_ids(kind, turns, name, context_length, ends):
    """For every template, turn and tool result: what was sampled is recorded unchanged, and the context only ever grows behind it."""
    renderer = RENDERERS[kind]
    tokenizer = renderer._tokenizer
    end = renderer.stop_ids[:1] if ends else renderer.stop_ids[-1:]
    scripted = [
        [token for piece in pieces for token in ([piece] if isinstance(piece, int) else tokenizer.encode(piece, add_special_tokens=False))]
        + list(end)
        for pieces in turns
    ]
    row = {"prompt": "hello" if kind == "plain" else CHAT}
    rollout, engine = play(in_turn(*scripted), name=name, row=row, renderer=renderer, context_length=1500 + context_length, max_turns=5)
    assert rollout.ending in ("complete", "truncated")
    assert len(rollout.turns) == len(engine.requests) == len(engine.completions)
    context: list[int] = []
    for turn, request, completion in zip(rollout.turns, engine.requests, engine.completions, strict=True):
        assert request.ids[: len(context)].tolist() == context
        given_ids, sampled_ids = turn.span.ids[~turn.span.sampled], turn.span.ids[turn.span.sampled]
        assert sampled_ids.tolist() == completion.ids.tolist()
        assert [*context, *given_ids.tolist()] == request.ids.tolist()
        assert turn.span.logprobs[turn.span.sampled].tolist() == completion.logprobs.tolist()
        context = [*request.ids.tolist(), *completion.ids.tolist()]
    if rollout.turns:
        (row_,) = rows_of(rollout)
        assert row_.ids.tolist() == context
        assert row_.ids[row_.trained].tolist() == [token for completion in engine.completions for token in completion.ids.tolist()]
        assert set(row_.version_steps[row_.trained]) <= {Version(step=4).step, Version(step=5).step}
    assert len(context) <= 1500 + context_length
