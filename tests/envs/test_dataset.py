from __future__ import annotations

import asyncio
import json

import pytest

from agentrl import registry
from agentrl.config import RunConfig
from agentrl.environment import Episode
from agentrl.envs.dataset import split_rows
from agentrl.envs.shell_tasks import ShellTasks
from agentrl.errors import ConfigError
from agentrl.records import Task
from agentrl.session import environment_spec

FUNCTIONS = """
def half(completions, **columns):
    return [0.5] * len(completions)

def short(prompts, completions):
    return [int(len(first) > len(second)) for first, second in completions]

async def first(prompts, completions):
    return [0] * len(completions)

def worth(value=1.0, name="worth", flag=False):
    def made(completions, **columns):
        return [value] * len(completions)
    made.__name__ = name
    return made

def picky(value):
    raise ValueError(f"got value {value!r}; it is never right")

def forgetful(completions):
    return [1.0]

nothing = 5
"""


@pytest.fixture
def run(tmp_path):
    """Makes the run file of a dataset of so many rows; functions are named `half`, `short`, `first` or `nothing`."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def make(*, num_rows=2, rewards=(), judge=None, weights=()):
        rows = [{"prompt": f"say {number}"} for number in range(num_rows)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = f"{tmp_path / 'functions.py'}:"
        return RunConfig(
            model="m",
            dataset=str(tmp_path / "rows.jsonl"),
            rewards=[where + name for name in rewards],
            judge=judge and where + judge,
            reward_weights=list(weights),
        )

    return make


def load(config):
    return registry.load(environment_spec(config))()


def episode(answer):
    messages = [{"role": "user", "content": "say 0"}, {"role": "assistant", "content": answer}]
    return Episode(task=Task.from_row("d", {"prompt": "say 0"}), prompt="say 0", messages=messages, completion_ids=[1], ending="complete")


@pytest.mark.parametrize(("judge", "expected"), [("short", (1.0, 0.0)), ("first", (1.0, 1.0))])
def test_a_judge_compares_and_every_score_is_0(run, judge, expected):
    environment = load(run(judge=judge))
    pairs = [("a", "long"), ("long", "a")]
    assert tuple(asyncio.run(environment.compare(episode(one), episode(other))) for one, other in pairs) == expected
    assert asyncio.run(environment.score(episode("a"))).value == 0.0


def test_rewards_and_a_judge_go_together(run):
    environment = load(run(rewards=["half", "half"], judge="short"))
    assert asyncio.run(environment.score(episode("a"))).value == 1.0
    assert asyncio.run(environment.compare(episode("a"), episode("long"))) == 1.0


def test_without_a_judge_nothing_is_compared(run):
    config = run(rewards=["half"])
    assert "judge=" not in environment_spec(config)
    with pytest.raises(NotImplementedError, match="without a judge"):
        asyncio.run(load(config).compare(episode("a"), episode("b")))


def test_every_20th_row_is_held_out(run):
    environment = load(run(num_rows=41, judge="short"))
    assert [row["prompt"] for row in environment.tasks("eval")] == ["say 0", "say 20", "say 40"]
    assert len(environment.tasks("train")) == 38
    assert len(load(run(num_rows=19, judge="short")).tasks("train")) == 19


def test_few_rows_are_all_trained_on(tmp_path):
    assert (split_rows(range(19), "train"), split_rows(range(19), "eval")) == (list(range(19)), [])
    assert (len(split_rows(range(20), "train")), split_rows(range(20), "eval")) == (19, [0])
    row = {"prompt": "Make a file.", "files": {}, "expected": {"a.txt": "a"}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert [ShellTasks(path=str(tmp_path / "rows.jsonl")).tasks(split) for split in ("train", "eval")] == [[row], []]


def test_what_is_no_function_is_refused_by_its_kind(run):
    with pytest.raises(ConfigError, match=r"judge '.*functions.py:nothing' is not a function"):
        load(run(judge="nothing"))
    with pytest.raises(ConfigError, match=r"reward '.*functions.py:missing' is not a function \(functions in .*functions.py: "):
        load(run(rewards=["missing"], judge="short"))


def test_something_must_tell_good_from_bad(run):
    with pytest.raises(ConfigError, match="needs `rewards`, a `judge`, or both"):
        load(run())


def test_prompts_alone_are_enough_where_the_objective_reads_no_rewards(run):
    config = run().model_copy(update={"objective": {"name": "opd"}})
    assert environment_spec(config).endswith("&unscored=true")
    environment = load(config)
    assert asyncio.run(environment.score(episode("a"))).value == 0
    assert not environment.compares


def test_weights_are_those_of_the_run_file(run):
    environment = load(run(rewards=["half", "half"], weights=[2.0, -1]))
    assert asyncio.run(environment.score(episode("a"))).value == 0.5


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_a_reward_has_one_weight(run, weights):
    with pytest.raises(ConfigError, match="give one finite number for each of `rewards`"):
        load(run(rewards=["half", "half"], weights=weights))


def test_weights_can_be_given_in_a_spec(run):
    spec = environment_spec(run(rewards=["half", "half"]))
    for weights in ("1,3", "[1, 3]"):
        assert asyncio.run(registry.load(f"{spec}&weights={weights}")().score(episode("a"))).value == 2.0
    assert asyncio.run(registry.load(f"{environment_spec(run(rewards=['half']))}&weights=4")().score(episode("a"))).value == 2.0
    with pytest.raises(ConfigError, match="weights '1,x' of 2 rewards"):
        registry.load(f"{spec}&weights=1,x")()


def test_factories_take_arguments(run):
    rewards = ["worth?value=0.25&name=a,b", "worth?", "half", "worth?value=-1&name='%26%2B:%20%23'"]
    score = asyncio.run(load(run(rewards=rewards)).score(episode("a")))
    assert score.parts == {"a,b": 0.25, "worth": 1.0, "half": 0.5, "&+: #": -1}


def test_our_own_factories_take_theirs(run):
    rewards = ["agentrl.rewards.length:soft_overlong?max_tokens=1&buffer=1", "agentrl.rewards.pattern:matches?pattern=a{1,2}"]
    config = run(rewards=["half"]).model_copy(update={"rewards": rewards})
    assert asyncio.run(load(config).score(episode("a"))).parts == {"soft_overlong_punishment": -1.0, "pattern_match": 1.0}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("worth?size=1", "does not accept its arguments .*it takes: value=1.0"),
        ("worth?value", r"^reward '.*worth\?value': arguments after '\?' are written key=value"),
        ("picky?value=3", "got value 3; it is never right"),
        ("half?", "half.*missing"),
        ("picky", "cannot be called with the keywords prompts, completions, completion_ids.*module:factory"),
        ("forgetful", "unexpected keyword argument 'prompts'|cannot be called"),
    ],
)
def test_a_factory_that_does_not_make_a_reward_is_refused(run, name, said):
    with pytest.raises(ConfigError, match=said):
        load(run(rewards=[name]))


def test_a_judge_can_be_made_by_a_factory_too(run):
    judge = "agentrl.rewards.judge:pairwise?url=http://127.0.0.1:9/v1&model=m&attempts=1&cache="
    config = run(judge="short").model_copy(update={"judge": judge})
    environment = load(config)
    assert environment.judge.__name__ == "pairwise"
    assert asyncio.run(environment.compare(episode("a"), episode("b"))) is None  # nobody listens there
    environment.judge.close()


def test_arguments_keep_their_letters(run):
    rewards = ["worth?name=\u00e9 \U0001f600", "half"]
    assert list(asyncio.run(load(run(rewards=rewards)).score(episode("a"))).parts) == ["\u00e9 \U0001f600", "half"]
