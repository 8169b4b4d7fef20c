"""The card of a trained model: `model/README.md`, with what was trained, on what, how, and what came of it.

Everything in it was written down by the run (config.yaml, metrics.jsonl) or is told by its caller; nothing is guessed. A card of an earlier
run can be made again from its folder.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from agentrl import objectives, runfile
from agentrl.curves import curves_svg, panels_of
from agentrl.errors import CheckpointError
from agentrl.run_folder import read_evaluations, read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agentrl.config import RunConfig

PACKAGES = ("agentrl", "torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "vllm", "bitsandbytes")
CARD, CURVES, FACTS = "README.md", "curves.svg", "card.json"
FINAL = (
    *("loss", "eval_loss", "reward/mean", "eval_reward", "entropy", "kl", "mean_token_accuracy", "eval_mean_token_accuracy"),
    *("rewards/accuracies", "rewards/margins", "eval_rewards/accuracies", "eval_rewards/margins", "accuracy", "eval_accuracy", "margin"),
    *("grad_norm", "completions/mean_length", "staleness/mean", "rollout/unscorable_share"),
)
"""Figures that the card's table names, where the run logged them."""
CITATION = """@software{agentrl,
  title = {agentrl: reinforcement learning and fine-tuning of language-model agents},
  version = {%s}
}"""
PIPELINES = {"tokens": "text-generation", "score": "text-classification", "labels": "token-classification"}
"""What the Hub calls a model with this head."""
PRIVATE_KEYS = {"output"}
"""Keys of the run file that say where on a machine something is, and not what was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card says beside the run file and the metrics; kept in the run folder, so that a resumed run adds to it."""

    data: Mapping[str, float] = field(default_factory=dict)
    """Counts of an offline run's rows: `data/rows`, `data/trained_tokens`, `data/dropped_long`, ..."""
    schema: str = ""
    """Of the dataset's rows."""
    best: str = ""
    """Which evaluation the model is from, in words; empty for the last step."""
    parameters: int | None = None
    trained_parameters: int | None = None


def write_card(folder: Path, run: Path, config: RunConfig, facts: CardFacts) -> None:
    """Write `README.md` and its curves into a folder with a model, and note the facts in the run folder.

    Args:
        folder: the model's.
        run: the run's, for its metrics.
        config: as it was in force.
        facts: what neither says.

    Raises `CheckpointError` where the disk refuses.
    """
    steps = sorted([*read_metrics(run), *read_evaluations(run)], key=lambda one: one["step"])
    panels = panels_of(steps)
    try:
        (folder / CARD).write_text(card(config, steps, facts, has_curves=bool(panels)))
        if panels:
            (folder / CURVES).write_text(curves_svg(panels))
        (folder / "adapter" / CARD).unlink(missing_ok=True)  # peft's, with nothing filled in but this machine's path of the base
        (run / FACTS).write_text(json.dumps({name: getattr(facts, name) for name in facts.__slots__}))
    except OSError as error:
        raise CheckpointError(f"cannot write the model card to {folder}: {error}") from error


def ensure_card(run: Path) -> None:
    """Write the card of a finished run that has none, from its folder."""
    if not (run / "model" / CARD).is_file():
        facts = CardFacts(**json.loads((run / FACTS).read_text())) if (run / FACTS).is_file() else CardFacts()
        write_card(run / "model", run, runfile.load(run / "config.yaml"), facts)


def card(config: RunConfig, steps: Sequence[Mapping[str, float]], facts: CardFacts, *, has_curves: bool) -> str:
    """The card's text: YAML front matter as the Hub reads it, then Markdown."""
    name = Path(config.model).name
    objective = objectives.get(config.objective["name"])
    parts = [
        f"---\n{_yaml(front_matter(config, facts))}---",
        f"# {name}, trained with `{objective.name}`",
        _opening(config, objective, steps, facts),
        "## Objective",
        _objective(objective),
        "## Data",
        "\n".join(_data(config, facts)),
        "## Results",
        "\n\n".join(_results(config, steps, has_curves)),
        "## Settings",
        "\n\n".join(_settings(config)),
        "## Made with",
        "\n".join(_versions()),
        "## To do it again",
        _command(config, steps),
        "## Citation",
        f"```bibtex\n{CITATION % _version('agentrl')}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(config: RunConfig, facts: CardFacts) -> dict[str, Any]:
    """What the Hub reads. A licence is for the owner to add: the base model's terms go on, and nobody here knows them."""
    found: dict[str, Any] = {"library_name": "transformers", "tags": ["agentrl", config.objective["name"], *_kinds(config)]}
    if _is_hub_name(config.model):
        found = {"base_model": config.model} | found
    datasets = [name for name in (_bare(spec) for spec in _sources(config)) if _is_hub_name(name)]
    if datasets:
        found["datasets"] = datasets
    needs = objectives.get(config.objective["name"]).needs(objectives.validate(config.objective))
    found["pipeline_tag"] = PIPELINES[needs.output]
    return found


def _kinds(config: RunConfig) -> Iterator[str]:
    yield "reinforcement-learning" if is_online(config) else "fine-tuning"
    if config.learner.lora is not None:
        yield "lora"


def is_online(config: RunConfig) -> bool:
    """Whether the run learned from rollouts, and not from the rows of a dataset."""
    return not objectives.get(config.objective["name"]).is_offline(objectives.validate(config.objective))


def _is_hub_name(text: str) -> bool:
    """`owner/name` that is no folder or file here."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).suffix and not Path(text).exists()


def _sources(config: RunConfig) -> list[str]:
    """Specs of the datasets that were trained on."""
    mixed = [one.dataset for one in config.datasets]
    return mixed or ([config.dataset] if config.dataset else [])


def _bare(spec: str) -> str:
    return spec.partition("?")[0]


def _opening(config: RunConfig, objective: objectives.Objective, steps: Sequence[Mapping[str, float]], facts: CardFacts) -> str:
    base = f"[{config.model}](https://huggingface.co/{config.model})" if _is_hub_name(config.model) else f"`{Path(config.model).name}`"
    done = int(steps[-1]["step"]) if steps else 0
    lines = [f"A model that began as {base} and was trained for {done:,} optimizer steps. {objective.summary}".rstrip()]
    if config.learner.lora is not None:
        lines.append(
            "An adapter was trained; the weights here are the model with the adapter merged, and the adapter alone is in `adapter/`."
        )
    if facts.parameters and facts.trained_parameters:
        lines.append(f"{facts.parameters:,} parameters, of which {facts.trained_parameters:,} were trained.")
    if facts.best:
        lines.append(f"These are the weights of the best evaluation: {facts.best}.")
    return "\n".join(lines)


def _objective(objective: objectives.Objective) -> str:
    formula = f"```\n{objective.formula}\n```\n\n" if objective.formula else ""
    return f"{formula}Source: {objective.source}" if objective.source else formula.rstrip()


def _data(config: RunConfig, facts: CardFacts) -> Iterator[str]:
    if is_online(config) and not _sources(config):
        mixed = [f"- environment: `{_shown_path(one.env)}`, weight {one.weight:g}" for one in config.envs]
        yield from mixed or [f"- environment: `{_shown_path(config.env or '')}`"]
    for spec in _sources(config):
        weight = next((f", weight {one.weight:g}" for one in config.datasets if one.dataset == spec), "")
        yield f"- dataset: `{_shown_path(spec)}`{weight}"
    if config.eval_dataset is not None:
        yield f"- evaluated on: `{_shown_path(config.eval_dataset)}`"
    elif config.data.eval_rows:
        yield f"- evaluated on: {config.data.eval_rows:,} rows held out of it"
    if facts.schema:
        yield f"- schema of its rows: {facts.schema}"
    for name, count in facts.data.items():
        yield f"- {name.removeprefix('data/').replace('_', ' ')}: {count:,.0f}"
    if config.rewards:
        yield f"- rewards: {', '.join(f'`{_shown_path(one)}`' for one in config.rewards)}"


def _shown_path(spec: str) -> str:
    """A spec without the folders of the machine it was on."""
    path, question, rest = spec.partition("?")
    return (Path(path).name if path.startswith(("/", "~", ".")) else path) + question + rest


def _results(config: RunConfig, steps: Sequence[Mapping[str, float]], has_curves: bool) -> Iterator[str]:
    found = {name: value for one in steps for name in FINAL if math.isfinite(value := one.get(name, math.nan))}
    if not found:
        yield "The run logged no figures."
        return
    tenth = steps[-max(len(steps) // 10, 1) :]
    yield "The last value of each figure, and its mean over the last tenth of the steps at which it was logged."
    rows = [
        f"| `{name}` | {value:.4g} | {_mean(tenth, name)} |" for name, value in sorted(found.items(), key=lambda item: FINAL.index(item[0]))
    ]
    yield "\n".join(["| figure | last | last tenth |", "|---|---|---|", *rows])
    if has_curves:
        yield f"![Curves of the run]({CURVES})"


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> str:
    values = [value for one in steps if math.isfinite(value := one.get(name, math.nan))]
    return f"{math.fsum(values) / len(values):.4g}" if values else ""


def _settings(config: RunConfig) -> Iterator[str]:
    """The keys that were set, in a table; every key in a section that opens."""
    everything = {key: value for key, value in _flat(_shareable(config)).items() if key not in PRIVATE_KEYS}
    defaults = _flat(_shareable(_defaults(config)))
    changed = {key: value for key, value in everything.items() if value != defaults.get(key)}
    yield "What differs from agentrl's defaults:"
    yield "\n".join(["| key | value |", "|---|---|", *(f"| `{key}` | `{_value(value)}` |" for key, value in changed.items())])
    yield f"<details><summary>All settings</summary>\n\n```yaml\n{_yaml(_shareable(config))}```\n\n</details>"


def _shareable(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON without what is private to a machine; it holds names of variables with secrets, never a secret."""
    values = config.model_dump(mode="json")
    return {key: _shared(value) for key, value in values.items() if key not in PRIVATE_KEYS}


def _shared(value: Any) -> Any:
    """A value without folders and hosts."""
    if isinstance(value, dict):
        return {key: _shared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shared(inner) for inner in value]
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return f"{value.partition('://')[0]}://SERVER"
    return _shown_path(value) if isinstance(value, str) else value


def _defaults(config: RunConfig) -> RunConfig:
    """The same run with nothing set but what has no default."""
    plain = type(config)(model="", objective={"name": ""})
    options = objectives.get(config.objective["name"]).config
    own = {name: one.get_default(call_default_factory=True) for name, one in options.model_fields.items() if not one.is_required()}
    return plain.model_copy(update={"objective": {**own, "name": ""}})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of sections; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        version = _version(name)
        if version:
            yield f"- {name} {version}"
    yield f"- Python {platform.python_version()}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from a checkout" if name == "agentrl" else ""


def _command(config: RunConfig, steps: Sequence[Mapping[str, float]]) -> str:
    resumed = len({one.get("lineage", 0) for one in steps})
    lines = ["Save the settings above as `run.yaml`, then:", "```sh\nagentrl train run.yaml\n```", f"The seed was {config.seed}."]
    if resumed > 1:
        lines.append(f"The run was interrupted and went on {resumed - 1} times.")
    if is_online(config) and config.max_staleness > 0:
        lines.append("Which rollouts a step trains depends on timing, so a second run gives another model; `max_staleness: 0` does not.")
    return "\n\n".join(lines)


def _yaml(values: Mapping[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1_000_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel's hint allows only None
    text = io.StringIO()
    yaml.dump(dict(values), text)
    return text.getvalue()
