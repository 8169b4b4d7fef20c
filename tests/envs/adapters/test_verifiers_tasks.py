"""The adapter of verifiers 0.4 against the real package, which lives in a Python of its own; so do the workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import trio
from adapter_pythons import verifiers_python
from other_python import other_pool, played
from rollout_fakes import in_turn, thread_pool

from agentrl import registry
from agentrl.environment import Episode
from agentrl.envs.adapters.verifiers_tasks import verifiers_tasks
from agentrl.envs.adapters.verifiers_trace import NoRuntime, wire_form
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task

HERE = Path(__file__).parent
SUMS, SHOP, DIALOG = (f"verifiers:{HERE / name}.py" for name in ("vf_sums", "vf_shop", "vf_dialog"))
EXAMPLE = f"verifiers:{HERE.parents[2] / 'examples/adapters/verifiers_sums.py'}"
HARNESS_DIALOG = f"{DIALOG}?mode=harness"
HARNESS_SHOP = f"{SHOP}?mode=harness&num_tasks=1&env={{agent: {{max_turns: 4}}}}"
CONFIGURED = f"{SUMS}?config={{size: 3}}&eval_config={{first: 100, size: 2}}"
REFUSED = {
    SHOP: "ConfigError: verifiers taskset vf_shop has no end of tasks; say how many are wanted with num_tasks",
    DIALOG: "ConfigError: verifiers taskset vf_dialog wants an Env of its own: .* mode=harness",
    f"{SUMS}?config={{size: many}}": "ConfigError: verifiers taskset vf_sums: .*valid integer",
    f"{SUMS}?config={{size: 0}}": "ConfigError: verifiers taskset vf_sums has no tasks",
    "verifiers:no-such-taskset": "ConfigError: verifiers taskset no-such-taskset: .*not found",
    f"verifiers:{HERE / 'missing.py'}": "ConfigError: .*there is no file",
    "verifiers:harbor": "ConfigError: verifiers taskset harbor",
}
ROWS = """
import json, sys
from agentrl.registry import load

def rows(spec):
    try:
        return [list(load(spec)().tasks(split)) for split in ("train", "eval")]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({spec: rows(spec) for spec in sys.argv[1:]}))
"""


@cache
def all_rows():
    """The rows of both splits by spec, or why there are none: of all specs at once, since the package takes seconds to import."""
    specs = [SUMS, EXAMPLE, CONFIGURED, f"{SHOP}?num_tasks=2", HARNESS_DIALOG, HARNESS_SHOP, *REFUSED]
    done = subprocess.run([verifiers_python(), "-c", ROWS, *specs], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows_of(spec):
    return all_rows()[spec]


def in_worker(spec, tmp_path, work, **environment):
    """Run something with a pool whose worker has verifiers."""

    async def main():
        async with other_pool(spec, verifiers_python(), tmp_path, **environment) as pool:
            return await work(pool)

    return trio.run(main)


def episode_of(task, prompt, *said):
    return Episode(task=task, prompt=prompt, messages=[*prompt, *said], completion_ids=[1], ending="complete")


@pytest.mark.adapters
def test_rewards_with_weights_are_parts(tmp_path):
    train, held_out = rows_of(SUMS)
    assert (len(train), len(held_out)) == (38, 2)
    assert not {row["task"]["answer"] for row in train} & {row["task"]["answer"] for row in held_out}
    task = Task.from_row("sums", train[0])

    async def work(pool):
        scores = []
        for answer in ("<think>2, or 3</think>\n\n2", "17"):
            session = await pool.open(task)
            prompt = session.opened.prompt
            assert session.opened.tools == []
            scores.append(await session.score(episode_of(task, prompt, {"role": "assistant", "content": answer})))
        return prompt, scores

    prompt, (right, wrong) = in_worker(SUMS, tmp_path, work)
    assert prompt == [{"role": "system", "content": "Answer with the number alone."}, {"role": "user", "content": "1+1=?"}]
    assert (right.value, dict(right.parts)) == (1.5, {"right": 1.0, "short": 1.0, "metric/turns": 1.0})
    assert (wrong.value, dict(wrong.parts)) == (0.25, {"right": 0.0, "short": 0.5, "metric/turns": 1.0})


@pytest.mark.adapters
def test_configs_of_the_taskset():
    train, held_out = rows_of(CONFIGURED)
    assert [row["task"]["answer"] for row in train] == [1, 2, 3]
    assert [row["task"]["answer"] for row in held_out] == [101, 102]


@pytest.mark.adapters
def test_toolsets_are_tools_and_share_the_state_of_their_episode_alone(tmp_path):
    (first, second), _ = rows_of(f"{SHOP}?num_tasks=2")

    async def work(pool):
        one, other = await pool.open(Task.from_row("shop", first)), await pool.open(Task.from_row("shop", second))
        tools = {tool["function"]["name"]: tool["function"] for tool in one.opened.tools}
        assert set(tools) == {"shop_put", "shop_look"}
        assert tools["shop_put"]["description"] == "Put an item into the basket."
        assert tools["shop_put"]["parameters"]["required"] == ["item"]
        assert (await one.call_tool("shop_put", {"item": "apple"})).text == "apple"
        assert (await one.call_tool("shop_put", {"item": "pear", "count": "2"})).text == "apple, pear, pear"
        assert (await other.call_tool("shop_look", {})).text == '{"result": []}'
        failed = await one.call_tool("shop_put", {"item": "unicorn"})
        assert failed.error
        assert "we do not sell unicorns" in failed.text
        call = {"type": "function", "id": "a", "function": {"name": "shop_put", "arguments": {"item": "apple"}}}
        said = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "name": "shop_put", "content": "apple"},
            {"role": "assistant", "content": "done"},
        ]
        scores = [await one.score(episode_of(Task.from_row("shop", first), one.opened.prompt, *said))]
        return [*scores, await other.score(episode_of(Task.from_row("shop", second), other.opened.prompt, *said[2:]))]

    bought, nothing = in_worker(f"{SHOP}?num_tasks=2", tmp_path, work)
    assert (bought.value, dict(bought.parts)) == (2.0, {"has_apple": 1.0, "has_pear": 1.0, "metric/tool_messages": 1.0})
    assert (nothing.value, dict(nothing.parts)) == (0.0, {"has_apple": 0.0, "has_pear": 0.0, "metric/tool_messages": 0.0})


@pytest.mark.adapters
def test_the_example_is_played(tmp_path):
    (row, *_), _ = rows_of(EXAMPLE)
    answer = row["task"]["answer"]

    async def work(pool):
        call = '<tool_call>{"name": "adder_add", "arguments": {"a": 1, "b": 2}}</tool_call>'
        return await played(pool, Task.from_row("sums", row), in_turn(call, str(answer)))

    rollout = in_worker(EXAMPLE, tmp_path, work)
    assert (rollout.score.value, dict(rollout.score.parts)) == (1.1, {"right": 1.0, "used_the_tool": 1.0})


@pytest.mark.adapters
@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_played_is_refused(spec):
    assert re.match(REFUSED[spec], rows_of(spec), re.DOTALL)


@pytest.mark.adapters
@pytest.mark.slow
def test_an_env_of_verifiers_plays_with_our_model(tmp_path):
    """Its own user, its own chat program in a process of its own; every sampled turn is trained once."""
    train, _ = rows_of(HARNESS_DIALOG)
    task = Task.from_row("dialog", train[0])

    async def work(pool):
        good = await played(pool, task, in_turn("1", "9", "3"))
        cut = await played(pool, task, in_turn("1", "9", "3"), max_turns=2)
        broken = await played(pool, task, in_turn("one"))
        return good, cut, broken

    good, cut, broken = in_worker(HARNESS_DIALOG, tmp_path, work)
    assert (good.score.value, dict(good.score.parts)) == (1.0, {"found": 1.0, "metric/guesses": 3.0})
    assert [message["content"] for message in good.messages] == ["Guess a number.", "1", "higher", "9", "lower", "3"]
    assert [turn.trained for turn in good.turns] == [True] * 3
    assert (cut.ending, cut.score.value, len(cut.turns)) == ("truncated", 0.0, 2)
    assert broken.score.value is None
    assert "invalid literal for int" in broken.reason


@pytest.mark.adapters
@pytest.mark.slow
def test_the_games_that_verifiers_ships(tmp_path):
    """Hangman of its `textarena` taskset: the game and the Env are its own. The only word is ours, since a corpus would be downloaded."""
    words = tmp_path / "nltk/corpora/words"
    words.mkdir(parents=True)
    for name in ("en", "en-basic"):
        (words / name).write_text("crane\n")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    apart = {"NLTK_DATA": str(tmp_path / "nltk"), **nowhere, "no_proxy": "127.0.0.1,localhost"}
    task = Task.from_row("hangman", {"task": {"idx": 0, "prompt": "Hangman: five letters.", "info": {"game": "Hangman-v0", "seed": 0}}})

    async def work(pool):
        return await played(pool, task, in_turn("I say [crane]."))

    won = in_worker("verifiers:textarena?mode=harness&num_tasks=2&config={game: Hangman-v0}", tmp_path, work, **apart)
    assert (won.score.value, dict(won.score.parts)) == (1.0, {"game_reward": 1.0})


@pytest.mark.adapters
@pytest.mark.slow
def test_tool_servers_of_verifiers_run_unchanged(tmp_path):
    ((row,), _) = rows_of(HARNESS_SHOP)
    calls = [f"<tool_call>{json.dumps({'name': 'shop_put', 'arguments': {'item': item}})}</tool_call>" for item in ("apple", "pear")]

    async def work(pool):
        return await played(pool, Task.from_row("shop", row), in_turn(*calls, "done"))

    rollout = in_worker(HARNESS_SHOP, tmp_path, work)
    assert (rollout.score.value, len(rollout.turns)) == (2.0, 3)


@pytest.mark.adapters
def test_mcp_tools_with_the_mcp_that_verifiers_pins(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1=?", "answer": 2}) + "\n")
    command = f"{verifiers_python()} {HERE / 'mcp_server.py'} stdio"
    spec = f"mcp:{command}?dataset={rows}&rewards={HERE / 'mcp_rewards.py'}:said_sum"

    async def work(pool):
        session = await pool.open(Task.from_row("rows", {"prompt": "1+1=?", "answer": 2}))
        return [await session.call_tool(name, arguments) for name, arguments in (("add", {"terms": [1, 1]}), ("fail", {}))]

    answer, failed = in_worker(spec, tmp_path, work)
    assert json.loads(answer.text)["total"] == 2
    assert failed.error


@pytest.mark.adapters
def test_served_from_a_python_of_its_own():
    """As it is used where pins clash: the run's own Python has no verifiers, and the server's no torch."""
    command = [str(Path(verifiers_python()).parent / "agentrl"), "serve-env", EXAMPLE, "--port", "0", "--workers", "1"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    async def main(spec):
        row = registry.load(spec)().tasks("train")[0]
        async with thread_pool(spec) as pool:
            session = await pool.open(Task.from_row("sums", row))
            added = await session.call_tool("adder_add", {"a": 1, "b": "2"})
            said = {"role": "assistant", "content": str(row["task"]["answer"])}
            return added.text, await session.score(episode_of(Task.from_row("sums", row), session.opened.prompt, said))

    try:
        found = next(match for line in process.stdout if (match := re.search(r"http://127\.0\.0\.1:[0-9]+", line)))
        text, score = trio.run(main, found[0])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    assert (text, score.value) == ("3", 1.0)


def test_without_verifiers():
    code = "from agentrl.envs.adapters.verifiers_tasks import verifiers_tasks as make\ntry:\n make('x')\nexcept Exception as e:\n print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.startswith("tasksets of verifiers need the package")


@pytest.mark.parametrize(("options", "why"), [({"mode": "agent"}, "allowed: turns, harness"), ({"seat": "player"}, "are for mode=harness")])
def test_wrong_arguments(options, why):
    with pytest.raises(ConfigError, match=why):
        verifiers_tasks("x", **options)


def test_messages_in_their_wire_form():
    call = {"type": "function", "id": "a", "function": {"name": "f", "arguments": {"x": "\u00e4"}}}
    made = wire_form({"role": "assistant", "content": "<think>so</think>\n\nhi", "tool_calls": [call]})
    assert (made["content"], made["reasoning_content"]) == ("hi", "so")
    assert made["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": "\u00e4"}'}
    assert wire_form({"role": "assistant", "content": "<think>never ends"})["content"] == ""
    assert wire_form({"role": "assistant", "content": "so</think>hi"})["reasoning_content"] == "so"
    assert wire_form({"role": "user", "content": "</think>"}) == {"role": "user", "content": "</think>"}


def test_a_runtime_that_is_not_there():
    with pytest.raises(EnvironmentFailure, match=r"asks for runtime\.run"):
        NoRuntime().run(["ls"])
