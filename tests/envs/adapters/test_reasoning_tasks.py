"""reasoning-gym's data sets, with the real package."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys

import pytest
from adapter_plays import episode_of, goldens, play, task_of

from agentrl import registry
from agentrl.envs.adapters.reasoning_guards import CHECKS
from agentrl.envs.adapters.reasoning_tasks import dataset_names, reasoning_tasks
from agentrl.envs.procedural import split_of
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task

WITHOUT_GOLDS = {"boxnet", "graph_color", "rush_hour"}
"""Their answers are many, and the library keeps none that its scorer would take."""
SLOW = {"futoshiki", "intermediate_integration", "knight_swap", "puzzle24", "zebra_puzzles", "sudoku"}


def test_an_episode_from_its_question_to_its_score():
    spec = "reasoning-gym:chain_sum?max_terms=3&max_digits=2"
    task = task_of(spec)
    right, wrong, none = play(spec, [task] * 3, goldens(spec, task), ["<answer>1000000</answer>"], ["<think>what"])
    assert right.messages[0] == {"role": "user", "content": task.row["question"]}
    assert [one.score.value for one in (right, wrong, none)] == [1.0, 0.0, 0.0]
    assert right.score.parts == {"solved": 1.0}
    assert none.score.reason == "no answer in the text"
    assert [len(one.turns) for one in (right, wrong, none)] == [1, 1, 1]


def test_rows_are_the_same_in_every_process_and_in_any_order():
    spec = "reasoning-gym:list_functions?seed=3"  # draws from the global generator
    script = f"from agentrl import registry; import json; print(json.dumps(registry.load({spec!r})().tasks('train')[5]))"
    elsewhere = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)
    rows = registry.load(spec)().tasks("train")
    later = [rows[at] for at in (9, 5)][1]
    assert later == elsewhere == rows[5]
    assert registry.load("reasoning-gym:list_functions?seed=4")().tasks("train")[5] != later


@pytest.mark.parametrize("spec", ["reasoning-gym:chain_sum?max_terms=2&max_digits=1", "reasoning-gym:gcd,lcm", "reasoning-gym:aiw"])
def test_no_question_is_in_both_splits(spec):
    environment = registry.load(f"{spec}{'&' if '?' in spec else '?'}size=2000&eval_size=300")()
    questions = [{row["question"] for row in environment.tasks(split)} for split in ("train", "eval")]
    assert all(questions)
    assert not questions[0] & questions[1]
    assert [len(environment.tasks(split)) for split in ("train", "eval")] == [2000, 300]


def test_too_few_questions_to_split_are_told():
    environment = reasoning_tasks("gcd")
    environment._source.draw = lambda stream: {"question": "always this one"}
    splits = {split: environment.tasks(split) for split in ("train", "eval")}
    held = split_of("always this one")
    assert splits[held][3] == {"question": "always this one"}
    with pytest.raises(ConfigError, match="gcd has too few different questions to hold some out: 500 draws fell into one split"):
        splits["train" if held == "eval" else "eval"][3]


def test_a_mixture_holds_all_of_its_parts_and_scores_each_by_its_own():
    environment = reasoning_tasks("gcd,spell_backward,basic_arithmetic", size=60)
    tasks = [Task.from_row("mixture", row) for row in environment.tasks("train")]
    assert {task.row["metadata"]["source_dataset"] for task in tasks} == {"gcd", "spell_backward", "basic_arithmetic"}
    assert all(environment.score(episode_of(task, environment.golden(task)[0])).value == 1.0 for task in tasks)
    weighted = registry.load("reasoning-gym:composite?datasets=[{name: gcd, weight: 1, config: {max_numbers: 2}}]&size=5")()
    assert weighted.tasks("train")[0]["metadata"]["source_dataset"] == "gcd"


def test_options_take_the_types_of_the_configuration():
    environment = registry.load("reasoning-gym:word_sorting?transformation=uppercase&min_words=3&max_words=3")()
    assert all(word.isupper() for word in environment.tasks("train")[0]["metadata"]["transformed_words"])
    row = registry.load('reasoning-gym:basic_arithmetic?operators=["%2B"]&min_terms=2&max_terms=2')().tasks("train")[0]
    assert "+" in row["question"]
    by_dates = registry.load("reasoning-gym:time_intervals?min_date=2020-01-01&max_date=2021-12-31")()
    assert by_dates.tasks("train")[0]["question"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("reasoning-gym:chain_summ", "no data set 'chain_summ'; it has: ab, acre"),
        ("reasoning-gym:chain_sum?terms=3", "has no option 'terms'; it has: allow_negation, max_digits"),
        ("reasoning-gym:chain_sum?max_terms=many", "max_terms is 'many': Input should be a valid integer"),
        ("reasoning-gym:chain_sum?min_terms=9", r"refuses its options \{'min_terms': 9\}: max_terms must be >= min_terms"),
        ('reasoning-gym:basic_arithmetic?operators=["+"]', r"holds a space, \[' '\]; in a spec `\+` is written %2B"),
        ("reasoning-gym:chain_sum?extract=box", "extract must be one of auto, tags, text, got 'box'"),
        ("reasoning-gym:chain_sum?plain=true&system=default", "leave out `system` or `plain`"),
        ("reasoning-gym:gcd,lcm?max_numbers=3", "options are those of one data set"),
        ("reasoning-gym:", "write reasoning-gym:NAME"),
    ],
)
def test_a_wrong_spec_is_told_with_what_is_allowed(spec, said):
    with pytest.raises(ConfigError, match=said):
        registry.load(spec)()


def test_the_prompt_comes_in_several_forms():
    task = task_of("reasoning-gym:chain_sum")
    question = task.row["question"]
    assert reasoning_tasks("chain_sum", plain=True).start(task) == question
    short = reasoning_tasks("chain_sum", short=True).start(task)[0]["content"]
    assert short == task.row["metadata"]["expression"] + " ="
    tagged = reasoning_tasks("chain_sum", system="direct").start(task)
    assert tagged[0]["role"] == "system"
    assert "<answer>" in tagged[0]["content"]
    assert reasoning_tasks("chain_sum", system="Be brief.").start(task)[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("extract", "answer", "value"),
    [
        ("auto", "so \\boxed{GOLD}", 1.0),
        ("auto", "well\n#### GOLD", 1.0),
        ("auto", "<answer>GOLD</answer> I am sure", 1.0),
        ("tags", "\\boxed{GOLD}", 0.0),
        ("tags", "<answer>GOLD</answer>", 1.0),
        ("text", "GOLD", 1.0),
        ("auto", "<think>GOLD", 0.0),
    ],
)
def test_the_answer_is_read_as_asked(extract, answer, value):
    environment = reasoning_tasks("lcm", extract=extract)
    task = Task.from_row("lcm", environment.tasks("train")[0])
    assert environment.score(episode_of(task, answer.replace("GOLD", task.row["answer"]))).value == value


def test_only_a_full_score_counts_where_that_is_asked():
    task = task_of("reasoning-gym:color_cube_rotation")
    lenient, strict = (reasoning_tasks("color_cube_rotation", exact=exact).score(episode_of(task, "zzz")) for exact in (False, True))
    assert 0 < lenient.value < 0.1  # the library gives a little to any answer
    assert strict.value == 0.0
    assert lenient.parts == strict.parts == {"solved": 0.0}


class OddScorer:
    def __init__(self, *given):
        self.given = given

    def score_answer(self, answer, entry):
        value = self.given[answer != entry["answer"]]
        if isinstance(value, Exception):
            raise value
        return value


@pytest.mark.parametrize(
    ("given", "value"),
    [((1.0, ValueError("no number")), 0.0), ((ValueError("broken"), ValueError("broken")), None), ((0.0, KeyError("x")), None)],
)
def test_a_scorer_that_raises_is_the_answers_fault_only_where_the_gold_scores(given, value):
    environment = reasoning_tasks("gcd")
    task = Task.from_row("gcd", environment.tasks("train")[0])
    environment._source.scorer = OddScorer(*given)
    score = environment.score(episode_of(task, "<answer>zzz</answer>"))
    assert score.value == value
    assert ("the answer cannot be read (ValueError: no number)" if value is not None else "reasoning-gym:gcd cannot score") in score.reason


@pytest.mark.parametrize("given", [math.nan, 1.5, -0.2, None, "1"])
def test_a_score_out_of_range_is_a_failure_and_rounding_is_not(given):
    environment = reasoning_tasks("gcd")
    task = Task.from_row("gcd", environment.tasks("train")[0])
    environment._source.scorer = OddScorer(1.0 + 2e-16, given)
    with pytest.raises(EnvironmentFailure, match=r"reasoning-gym:gcd: score_answer returned .*allowed: a number from 0 to 1"):
        environment.score(episode_of(task, "zzz"))
    assert environment.score(episode_of(task, task.row["answer"])).value == 1.0


@pytest.mark.parametrize("name", ["binary_matrix", "countdown", "n_queens", "simple_integration", "spiral_matrix", "string_insertion"])
def test_an_answer_that_is_a_program_is_not_run(name, tmp_path):
    environment = reasoning_tasks(name, size=10)
    task = Task.from_row(name, environment.tasks("train")[0])
    program = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    assert environment.score(episode_of(task, f"<answer>{program}</answer>")).value == 0.0
    assert not (tmp_path / "ran").exists()


def test_every_scorer_that_runs_answers_is_guarded():
    from reasoning_gym.factory import DATASETS

    running = {
        name
        for name in dataset_names()
        if any(mark in inspect.getsource(DATASETS[name][0].score_answer) for mark in ("eval(", "parse_expr(", "sympify(", "exec("))
    }
    assert running - {"number_sorting"} <= set(CHECKS)  # that one evaluates its gold
    assert len(running) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", dataset_names())
@pytest.mark.filterwarnings("ignore:loadtxt", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_golds_of_every_data_set_score_1(name):
    environment = reasoning_tasks(name, size=100 if name in SLOW else 2000)
    rows = [environment.tasks("train")[at] for at in ((0,) if name in SLOW else (0, 7, 1999))]
    for row in rows:
        task = Task.from_row(name, json.loads(json.dumps(row)))
        gold = environment.golden(task)
        assert (gold is None) == (name in WITHOUT_GOLDS)
        for answer in ("", "<think>", "<answer></answer>"):
            assert environment.score(episode_of(task, answer)).value == 0.0
        assert environment.score(episode_of(task, "<answer>no answer, this</answer>")).value < 0.3
        if gold:
            assert environment.score(episode_of(task, gold[0])).value == 1.0
