"""What lies between the stages of the chain: a student, demonstrations, and rows made of a model's own samples."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from parts import training_sums

from agentrl.quickstart import model_path

if TYPE_CHECKING:
    from pathlib import Path

Row = Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]

DEMONSTRATIONS = 144
"""Training sums of which the right answer is shown, of 3,686."""
PAIRS_OF_A_SUM = 8
"""Most pairs of one sum that the verifier's judgement gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A sum and what a model answered: each text once, with the verifier's score."""

    prompt: Messages
    answers: Mapping[str, float]


def student(folder: Path) -> str:
    """The quickstart's model with the first of its two layers alone; returns its folder.

    It answers at random: what it has are the embeddings and half of what lies between them. Source: DistilBERT's start, Sanh et al. 2019,
    arXiv:1910.01108, sec. 3.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(model_path())
    config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
    model = AutoModelForCausalLM.from_config(config)
    whole = AutoModelForCausalLM.from_pretrained(model_path()).state_dict()
    model.load_state_dict({name: whole[name] for name in model.state_dict()})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    return str(folder)


def demonstrations(seed: int) -> list[Row]:
    """Right answers to a few of the training sums."""
    rows = random.Random(f"demonstrations/{seed}").sample(training_sums(), DEMONSTRATIONS)
    return [{"prompt": row["prompt"], "completion": said(f"\\boxed{{{row['answer']}}}")} for row in rows]


def texts(sums: Iterable[Answered]) -> list[Row]:
    """What a model said, right or wrong."""
    return [{"prompt": one.prompt, "completion": said(text)} for one in sums for text in one.answers]


def said(text: str) -> list[dict[str, str]]:
    """A completion in messages."""
    return [{"role": "assistant", "content": text}]


def answered(rollouts: Path) -> list[Answered]:
    """What `agentrl eval --output` kept: of each task the different answers that say something, ended by themselves and could be scored."""
    found = []
    for line in rollouts.read_text().splitlines():
        group = json.loads(line)["rollouts"]
        whole = [one for one in group if one["ending"] == "complete" and one["score"]["value"] is not None]
        spoken = [(one["messages"][-1]["content"], float(one["score"]["value"])) for one in whole]
        answers = {text: score for text, score in spoken if text.strip()}
        found.append(Answered(prompt=group[0]["messages"][:-1], answers=answers))
    return found


def judged(sums: Iterable[Answered], seed: int) -> list[Row]:
    """Pairs of a right and a wrong answer, by the verifier."""
    stream, rows = random.Random(f"pairs/{seed}"), []
    for one in sums:
        right, wrong = ([text for text, score in one.answers.items() if (score >= 1) == good] for good in (True, False))
        made = [(good, bad) for good in right for bad in wrong]
        for good, bad in stream.sample(made, min(len(made), PAIRS_OF_A_SUM)):
            rows.append({"prompt": one.prompt, "chosen": said(good), "rejected": said(bad)})
    return rows


def ranked(sums: Sequence[Answered], reward_model: str) -> tuple[list[Row], float]:
    """Pairs of the answer that a reward model likes best and the one that it likes least.

    Returns: the pairs, and the share of the sums with right and wrong answers in which it likes a right one best. No pair is made with
        that: it says how good the reward model is on sums that it was not trained on.
    """
    from agentrl.rewards.reward_model import reward_model as load
    from agentrl.servers.reward_rows import RewardRow

    texts = [(index, text) for index, one in enumerate(sums) for text in one.answers]
    asked = [RewardRow(prompt=list(sums[index].prompt), completion=said(text)) for index, text in texts]
    scored = [(index, text, score.value) for (index, text), score in zip(texts, load(reward_model).scores(asked), strict=True)]
    rows, right, mixed = [], 0, 0
    for index, group in groupby(scored, key=lambda one: one[0]):
        order = sorted((value, text) for _, text, value in group if value is not None)
        if len(order) < 2:
            continue
        best, worst, answers = order[-1][1], order[0][1], sums[index].answers
        rows.append({"prompt": sums[index].prompt, "chosen": said(best), "rejected": said(worst)})
        if min(answers.values()) < 1 <= max(answers.values()):
            mixed, right = mixed + 1, right + (answers[best] >= 1)
    return rows, right / mixed if mixed else float("nan")


def write(path: Path, rows: Iterable[Row]) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
