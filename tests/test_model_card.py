from __future__ import annotations

import json
import re

import pytest
from ruamel.yaml import YAML

from agentrl import runfile
from agentrl.model_card import CardFacts, ensure_card, write_card

DPO = {
    "model": "owner/base",
    "dataset": "owner/pairs?split=train",
    "objective": {"name": "grpo"},
    "rewards": ["/home/somebody/rewards.py:right"],
    "learner": {"lr": 3e-5, "lora": {}},
    "seed": 7,
    "steps": 20,
    "output": "/home/somebody/runs/x",
}
FACTS = CardFacts(
    data={"data/rows": 1200.0, "data/dropped_long": 3.0}, schema="preference, conversational", best="best eval_loss 0.5 at step 10"
)


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, without a card."""
    (tmp_path / "model").mkdir()
    config = runfile.from_mapping(DPO)
    (tmp_path / "config.yaml").write_text(runfile.dump(config))
    steps = [{"step": step, "lineage": 0, "loss": 1 / step, "reward/mean": float("nan"), "grad_norm": 1.0} for step in range(1, 21)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({"step": 10, "eval_loss": 0.5, "eval_rewards/accuracies": 0.75}) + "\n")
    return tmp_path


def written(run, facts=FACTS, config=None):
    write_card(run / "model", run, config or runfile.load(run / "config.yaml"), facts)
    return (run / "model" / "README.md").read_text()


def front(text):
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return YAML(typ="safe", pure=True).load(match[1])


def test_the_front_matter_is_what_the_hub_reads(run):
    assert front(written(run)) == {
        "base_model": "owner/base",
        "library_name": "transformers",
        "tags": ["agentrl", "grpo", "reinforcement-learning", "lora"],
        "datasets": ["owner/pairs"],
        "pipeline_tag": "text-generation",
    }


def test_the_hubs_own_reader_takes_it(run):
    from huggingface_hub import ModelCard

    data = ModelCard(written(run)).data
    assert (data.base_model, data.library_name, data.license) == ("owner/base", "transformers", None)


def test_what_is_only_on_this_machine_is_named_nowhere(run):
    text = written(run, config=runfile.from_mapping(DPO | {"model": "/home/somebody/models/tiny", "dataset": "/home/somebody/rows.jsonl"}))
    assert "somebody" not in text
    assert "began as `tiny`" in text
    assert "- dataset: `rows.jsonl`" in text
    assert not {"base_model", "datasets"} & front(text).keys()


def test_folders_and_hosts_anywhere_in_the_settings_are_left_out(run):
    private = {
        "model": "quickstart",
        "env": "/home/somebody/envs/mine.py:Game?size=3",
        "imports": ["~/somebody/objectives.py"],
        "engine": {"kind": "vllm", "servers": ["http://somebody.internal:8000"]},
        "policies": {"judge": {"model": "../somebody/judge"}},
    }
    config = runfile.from_mapping({key: value for key, value in private.items() if key != "imports"})
    text = written(run, config=config.model_copy(update={"imports": private["imports"]}))
    assert "somebody" not in text
    assert "- environment: `mine.py:Game?size=3`" in text
    assert "http://SERVER" in text


def test_it_says_what_was_trained_on_what_and_how(run):
    text = written(run)
    assert "was trained for 20 optimizer steps" in text
    assert "the weights of the best evaluation: best eval_loss 0.5 at step 10." in text
    assert "- rows: 1,200\n- dropped long: 3\n" in text
    assert "- schema of its rows: preference, conversational" in text
    assert "The seed was 7." in text
    assert "Source: " in text
    assert re.search(r"- transformers \d", text)


def test_the_first_table_holds_what_was_changed_and_the_section_everything(run):
    text = written(run)
    table, everything = text.split("<details>")
    assert "| `learner.lr` | `3e-05` |" in table
    assert "| `learner.lora.rank` | `16` |" in table  # by default there is none
    assert "`learner.betas`" not in table
    assert "`objective.clip_low`" not in table
    values = YAML(typ="safe", pure=True).load(re.search(r"```yaml\n(.*?)```", everything, re.DOTALL)[1])
    assert values["learner"]["betas"] == [0.9, 0.99]
    assert runfile.from_mapping(values).learner.lr == 3e-5  # it can be trained again from the card


def test_figures_that_were_not_finite_are_not_results(run):
    text = written(run)
    assert "| `loss` | 0.05 | 0.05132 |" in text
    assert "| `eval_rewards/accuracies` | 0.75 |  |" in text
    assert "`reward/mean`" not in text
    assert "![Curves of the run](curves.svg)" in text
    assert (run / "model" / "curves.svg").read_text().startswith("<svg")


def test_a_run_without_figures_has_a_card_without_curves(run):
    (run / "metrics.jsonl").write_text("")
    (run / "evaluations.jsonl").unlink()
    text = written(run, CardFacts())
    assert "The run logged no figures." in text
    assert "curves.svg" not in text


def test_a_card_can_be_made_again_from_the_folder(run):
    first = written(run)
    (run / "model" / "README.md").unlink()
    ensure_card(run)
    assert (run / "model" / "README.md").read_text() == first
    (run / "model" / "README.md").write_text("the owner's own")
    ensure_card(run)
    assert (run / "model" / "README.md").read_text() == "the owner's own"


def test_the_empty_card_that_peft_writes_is_not_left(run):
    (run / "model" / "adapter").mkdir()
    (run / "model" / "adapter" / "README.md").write_text("base_model: /home/somebody/base")
    written(run)
    assert not list((run / "model" / "adapter").iterdir())


def test_an_offline_run_says_so(run):
    config = runfile.from_mapping({"model": "quickstart", "dataset": "rows.jsonl", "objective": "sft", "steps": 3})
    text = written(run, config=config)
    assert front(text)["tags"] == ["agentrl", "sft", "fine-tuning"]
    assert "max_staleness" not in text.split("<details>")[0]


@pytest.mark.parametrize(("name", "tag"), [("reward_model", "text-classification"), ("process_reward_model", "token-classification")])
def test_a_model_that_gives_scores_is_none_that_writes(run, name, tag):
    config = runfile.from_mapping({"model": "quickstart", "dataset": "rows.jsonl", "objective": name, "steps": 3})
    assert front(written(run, config=config))["pipeline_tag"] == tag
