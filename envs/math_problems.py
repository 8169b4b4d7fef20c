"""Problems with known answers, from a JSON-lines or parquet file, a saved data set or the Hub; one turn, one final answer."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.problem_rows import Columns, Source, problems, read_source
from agentrl.envs.procedural import split_of
from agentrl.errors import ConfigError
from agentrl.gold_audit import OnBadGold, audit, good_rows
from agentrl.llm import Message
from agentrl.records import Score, Task
from agentrl.registry import register
from agentrl.rewards.graders import GRADERS, Grader, grader
from agentrl.rewards.math_compare import Policy

PROBLEM_COLUMNS = ("problem", "question", "prompt")
GOLD_COLUMNS = ("answer", "solution", "gold")
OPTION_COLUMNS = ("options", "choices")
AUDIT_S = 60.0
"""Longest time to grade a split's golds against themselves; rows beyond it are trained on unaudited."""


@register("math")
class MathProblems(Environment):
    r"""Problems whose final answers are compared with golds.

    Args:
        path: a `.jsonl` or `.parquet` file.
        dataset: a folder that `datasets` saved, a folder of parquet files, or a name on the Hub.
        config: the Hub data set's configuration.
        split: of `dataset`, to train on.
        eval_split: of `dataset`, to evaluate on.
        eval_path: a file to evaluate on. Without it and `eval_split`, a tenth of the problems is held out by a hash of their text.
        grader: `math`, `gsm8k`, `multiple_choice`, `numeric_units` or `exact`.
        policy: what is right beyond equality, separated by commas: `interval_for_inequality`, `round_to_gold`, `percent_as_number`.
        system: the system message; by default it says what form the final answer has. Empty for none.
        problem_column: by default the first that there is of `problem`, `question` and `prompt`.
        gold_column: by default the first that there is of `answer`, `solution` and `gold`.
        on_bad_gold: `skip` rows whose golds do not grade as correct against themselves, or `refuse` the data set. More than a tenth of
            the rows are never skipped.
    """

    max_turns = 1

    def __init__(
        self,
        path: str | None = None,
        dataset: str | None = None,
        config: str | None = None,
        split: str = "train",
        eval_split: str | None = None,
        eval_path: str | None = None,
        grader: str = "math",
        policy: str = "",
        system: str | None = None,
        problem_column: str | None = None,
        gold_column: str | None = None,
        on_bad_gold: str = "skip",
    ) -> None:
        if (path is None) == (dataset is None):
            raise ConfigError("math: give either path=FILE.jsonl or dataset=NAME, and not both")
        if eval_split is not None and (path is not None or eval_path is not None):
            raise ConfigError("math: eval_split belongs to dataset=NAME, in place of eval_path")
        if on_bad_gold not in ("skip", "refuse"):
            raise ConfigError(f"math: on_bad_gold may be skip or refuse, got {on_bad_gold!r}")
        self._source = Source(path=path, dataset=dataset, config=config, split=split)
        self._eval_source: Source | None = None
        if eval_path is not None or eval_split is not None:
            self._eval_source = Source(path=eval_path, dataset=dataset, config=config, split=eval_split or split)
        self._columns = (problem_column, gold_column)
        self._on_bad_gold: OnBadGold = "skip" if on_bad_gold == "skip" else "refuse"
        self._grader = _grader(grader, policy)
        self._system = f"Solve the problem. {self._grader.asks}" if system is None else system

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split as `problem`, `gold` and, for multiple choice, `options`; those without a usable gold left out."""
        if self._eval_source is None:
            rows = [row for row in self._rows(self._source) if split_of(row["problem"]) == split]
        elif split == "eval":
            rows = self._rows(self._eval_source)
        else:
            held_out = {row["problem"] for row in self._rows(self._eval_source)}
            rows = [row for row in self._rows(self._source) if row["problem"] not in held_out]
        report = audit(rows, lambda row: self._grader.gold_fault(row["gold"], row.get("options")), within_s=AUDIT_S)
        good = good_rows(rows, report, what=f"math, {self._source.name}", on_bad_gold=self._on_bad_gold)
        if len(good) < len(rows):
            self.notices = (f"math, {self._source.name}, {split}: rows left out: {report.summary()}",)
        if not good:
            raise ConfigError(f"math, {self._source.name}: no row is left for {split!r}, of {len(rows)} with golds")
        return good

    def start(self, task: Task) -> list[Message]:
        """The problem, its options below it."""
        options = task.row.get("options") or {}
        labelled = options.items() if isinstance(options, Mapping) else zip(string.ascii_uppercase, options, strict=False)
        text = "\n".join([task.row["problem"], *(f"{label}. {text}" for label, text in labelled)])
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, {"role": "user", "content": text}]

    def score(self, episode: Episode) -> Score:
        """1 for the gold's answer, 0 for another, unscorable where it cannot be told."""
        row = episode.task.row
        return self._grader.grade(gold=row["gold"], answer=episode.answer, options=row.get("options")).score()

    def golden(self, task: Task) -> Sequence[str]:
        """The gold, as the grader wants it."""
        return [self._grader.solution(task.row["gold"])]

    def _rows(self, source: Source) -> list[dict[str, Any]]:
        problem, gold = self._columns
        options = OPTION_COLUMNS if self._grader.name == "multiple_choice" else ()
        columns = Columns(
            problem=PROBLEM_COLUMNS if problem is None else (problem,), gold=GOLD_COLUMNS if gold is None else (gold,), options=options
        )
        return problems(source, read_source(source), columns)


def _grader(name: str, policy: str) -> Grader:
    allowed = [field.name for field in dataclasses.fields(Policy)]
    wanted = [one.strip() for one in policy.split(",") if one.strip()]
    if name not in GRADERS:
        raise ConfigError(f"math: grader may be {', '.join(GRADERS)}, got {name!r}")
    if unknown := [one for one in wanted if one not in allowed]:
        raise ConfigError(f"math: policy may hold {', '.join(allowed)}, separated by commas; got {unknown[0]!r}")
    if wanted and name not in ("math", "gsm8k"):
        raise ConfigError(f"math: policy is for the graders math and gsm8k, not for {name}")
    return grader(name, Policy(**dict.fromkeys(wanted, True)))
