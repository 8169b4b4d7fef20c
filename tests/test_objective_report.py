import io
import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, create_model
from rich.console import Console

from agentrl import objectives, runfile
from agentrl.errors import ConfigError
from agentrl.objective_report import FAMILIES, OTHERS, TRL, TRL_CORRECTIONS, facts_of, facts_of_all, values_of
from agentrl.objective_tables import listed, shown
from agentrl.objectives import Losses, Needs, Objective, ObjectiveConfig
from agentrl.objectives.corrections import CORRECTIONS
from agentrl.objectives.registry import BUILT_IN

NAMES = [objective.name for objective in BUILT_IN]


class MineConfig(ObjectiveConfig):
    name: Literal["mine"] = "mine"
    strength: float
    """How hard it pulls."""
    mode: Literal["soft"] = "soft"


@pytest.fixture
def mine():
    before = dict(objectives.registry._objectives)
    row = Objective(
        name="mine",
        config=MineConfig,
        advantages=lambda groups, config: [group.rewards for group in groups],
        loss=lambda batch, config: Losses(per="token", loss=-batch.logprobs),
        needs=lambda config: Needs(reference=config.strength > 1),
        formula="-log policy",
        paper={"strength": "7", "group_size": "3"},
    )
    yield objectives.register(row)
    objectives.registry._objectives.clear()
    objectives.registry._objectives.update(before)


def printed(parts, width):
    text = io.StringIO()
    console = Console(width=width, highlight=False, markup=False, file=text)
    for part in parts:
        console.print(part)
    return text.getvalue()


def option(facts, name):
    return next(one for one in facts["options"] if one["name"] == name)


def test_every_objective_of_ours_has_one_family():
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(NAMES)
    assert [row["name"] for row in facts_of_all()] == [name for names in FAMILIES.values() for name in names]
    assert set(TRL) < set(NAMES)
    assert set(TRL_CORRECTIONS) < set(CORRECTIONS)


def test_the_list_says_what_is_compared_and_needed():
    rows = {row["name"]: (row["compares"], row["needs"]) for row in facts_of_all()}
    assert rows["grpo"] == ("with its group's mean", ["groups of 2+"])
    assert rows["rloo"] == ("with its siblings' mean", ["groups of 2+", "reference"])
    assert rows["reinforce"] == ("with earlier steps' mean", [])
    assert rows["ppo"] == ("with a critic's values", ["reference", "critic", "4 x 1 updates"])
    assert rows["decoupled_ppo"][1] == ["groups of 2+", "1 x 4 updates"]
    assert rows["m2po"][1] == ["groups of 2+", "one more pass"]
    assert rows["dapo"][1] == ["groups of 2+", "dynamic sampling"]
    assert rows["online_dpo"] == ("two by two", ["groups of 2+", "reference", "pairs", "(judge)"])
    assert rows["nash_md"] == ("with a rival's", ["even groups", "reference", "rivals", "(judge)"])
    assert rows["a2po"] == ("with the reference's", ["even groups", "reference", "rivals"])


def test_an_objective_is_told_with_formula_options_and_papers_values():
    facts = facts_of("grpo")
    assert facts["formula"] == objectives.get("grpo").formula.splitlines()
    assert facts["trl"] == "GRPOTrainer, loss_type: grpo"
    clip = option(facts, "clip_low")
    assert (clip["values"], clip["default"], clip["paper"], clip["shared"]) == ("number > 0, <= 1", 0.2, "0.2", False)
    assert clip["description"].startswith("The importance ratio is clipped below")
    assert option(facts, "beta")["paper"] == "0.04"
    assert option(facts, "corrections")["default"] == []
    assert option(facts, "beta")["shared"]
    assert facts["paper_also"] == {"group_size": "64"}
    assert any("delta" in sentence for sentence in facts["refused"])


def test_an_objectives_own_options_come_first():
    names = [one["name"] for one in facts_of("ppo")["options"]]
    assert names[0] == "clip_low"
    assert names.index("gae_lambda") < names.index("beta") < names.index("baseline") < names.index("reward_weights")
    assert option(facts_of("ppo"), "baseline")["fixed"]
    assert not option(facts_of("ppo"), "beta")["shared"]  # with a default of its own


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_its_default_and_a_description(name):
    config = objectives.get(name).config()
    for one in facts_of(name)["options"]:
        assert one["default"] == getattr(config, one["name"])
        assert one["description"], f"{name}.{one['name']} has no docstring"


@pytest.mark.parametrize("name", NAMES)
def test_the_run_file_that_is_shown_is_one(name, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(facts_of(name)["run_file"])
    assert runfile.load(path).objective == objectives.get(name).config().model_dump(mode="json")


@pytest.mark.parametrize("name", [*NAMES, "corrections", "kl"])
def test_facts_are_json_and_fit_a_terminal(name):
    facts = facts_of(name)
    json.dumps(facts, allow_nan=False)
    for width in (50, 80, 120):
        text = printed(shown(facts, width), width)
        assert max(map(len, text.splitlines())) <= width
        assert all(one["name"] in text for one in facts.get("options", ()))


def test_the_list_fits_a_terminal():
    rows = facts_of_all()
    json.dumps(rows, allow_nan=False)
    for width in (50, 80, 120):
        text = printed(listed(rows, width), width)
        assert max(map(len, text.splitlines())) <= width
        assert all(f"  {name}" in text for name in NAMES)


def test_corrections_say_what_they_do_and_who_refuses_them():
    facts = {one["name"]: one for one in facts_of("corrections")["corrections"]}
    assert list(facts) == list(CORRECTIONS)
    assert (facts["tis"]["does"], facts["tis"]["acts_on"], facts["tis"]["formula"]) == ("weighs", "tokens", "clamp(rho, min, max)")
    assert (facts["veto"]["does"], facts["veto"]["acts_on"]) == ("masks", "rollouts")
    assert facts["tis"]["refused_by"] == ["aipo", "decoupled_ppo", "dppo", "m2po", "rloo", "vespo"]
    assert facts["veto"]["refused_by"] == []
    assert facts["ratio_cap"]["refused_by"] == ["rloo"]
    assert facts_of("corrections")["taken_by_none"] == ["a2po", "nash_md", "online_dpo", "sdft", "ssd", "xpo"]


def test_the_topic_kl_has_a_row_for_each_place_and_estimator():
    rows = facts_of("kl")["gradients"]
    assert [(row["where"], row["estimate"]) for row in rows] == [
        ("loss, weighted by the ratio", "any"),
        ("loss, plain", "k1"),
        ("loss, plain", "k2"),
        ("loss, plain", "k3"),
        ("reward", "k1"),
        ("reward", "k2, k3"),
    ]
    assert rows[3]["on_policy"] == "that of KL(reference || policy)"


def test_the_guide_has_every_objective_and_correction():
    guide = (Path(__file__).parents[1] / "examples" / "objectives.md").read_text()
    assert guide.splitlines()[2].startswith(f"{len(BUILT_IN)} objectives ")
    for objective in BUILT_IN:
        rows = [line for line in guide.splitlines() if line.startswith(f"| `{objective.name}` |")]
        papers = re.findall(r"arXiv:[0-9.]+[0-9]", objective.source)
        assert any(paper in row for row in rows for paper in papers), f"{objective.name} has none of {papers}"
    assert all(f"\n| `{name}` | " in guide for name in CORRECTIONS)


def test_an_objective_of_ones_own_is_told_too(mine):
    assert facts_of_all()[-1] == {
        "name": "mine",
        "family": OTHERS,
        "compares": "by its own options",
        "needs": ["options"],
        "requires": None,
        "summary": "",
    }
    facts = facts_of("mine")
    assert facts["needs"] == ["values of strength, on which the rest depends"]
    assert (option(facts, "strength")["required"], option(facts, "strength")["paper"]) == (True, "7")
    assert option(facts, "mode")["values"] == "only soft"
    text = printed(shown(facts, 80), 80)
    assert "How hard it pulls." in text
    assert "(required)" in text


def test_what_is_not_there_has_the_nearest_name(mine):
    with pytest.raises(ConfigError, match=r"no objective is called 'mien'; did you mean 'mine'\?"):
        facts_of("mien")
    with pytest.raises(ConfigError, match=r"no objective is called 'correction'; did you mean the topic 'corrections'\?"):
        facts_of("correction")


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (Annotated[float, Field(gt=0, le=1)] | None, "number > 0, <= 1 | null"),
        (Annotated[int, Field(ge=1)], "whole number >= 1"),
        (Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)], "number >= 0, < 1"),
        (Literal["a", "b"], "a | b"),
        (Literal["a"], "only a"),
        (bool, "true | false"),
        (None, "null"),
        (str, "text"),
        (dict[str, float] | None, "section of numbers | null"),
        (list[str], "list of texts"),
    ],
)
def test_values_in_words(annotation, said):
    field = create_model("Options", field=(annotation, ...)).model_fields["field"]
    assert values_of(field.annotation, field.metadata) == said
