"""What `agentrl objectives` says: the facts of the registry as plain data, which `agentrl.objective_tables` lays out for a terminal."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from agentrl import objectives
from agentrl.errors import ConfigError
from agentrl.objectives import corrections, kl, policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

    from agentrl.examples import DataKind
    from agentrl.objectives import Needs, Objective
    from agentrl.objectives.needs import Teacher

Facts = dict[str, Any]
"""What `--json` prints."""

FAMILIES: Mapping[str, Sequence[str]] = {
    "A clipped ratio of each token": ("grpo", "dr_grpo", "dapo", "bnpo", "clip_cov", "ppo", "decoupled_ppo"),
    "A clipped ratio of each rollout": ("gspo", "gspo_token", "gmpo", "luspo", "rloo"),
    "A weight in the place of a clip": ("reinforce", "cispo", "aipo", "sapo", "vespo"),
    "Tokens left out or held back in the place of a clip": ("dppo", "m2po", "kl_cov"),
    "Preferences, and regression onto a reference": ("online_dpo", "xpo", "nash_md", "a2po"),
    "Distillation from a teacher": ("gkd", "opd", "minillm", "iw_opd", "gold"),
    "Distillation from oneself": ("sdft", "sdpo", "ssd"),
    "Offline: texts, and models that judge them": ("sft", "reward_model", "process_reward_model"),
    "Offline: pairs of a chosen and a rejected text": ("dpo", "orpo", "cpo", "simpo", "cpo_simpo", "alphapo", "tpo"),
    "Offline: single texts that are good or bad": ("kto", "bco"),
}
OTHERS = "Registered by others"

TRL: Mapping[str, str] = {
    "a2po": "A2POTrainer (experimental)",
    "alphapo": "CPOTrainer (experimental), loss_type: alphapo",
    "bco": "BCOTrainer (experimental, up to 1.13)",
    "cispo": "GRPOTrainer, loss_type: cispo; its epsilon_high is ratio_max",
    "cpo": "CPOTrainer (experimental); its simpo_gamma is gamma",
    "cpo_simpo": "CPOTrainer (experimental), loss_type: simpo with cpo_alpha; its simpo_gamma is gamma",
    "dapo": "GRPOTrainer, loss_type: dapo, without dynamic sampling",
    "dpo": "DPOTrainer; loss_type is loss, f_divergence_type f_divergence, f_alpha_divergence_coef f_alpha, use_weighting weighting",
    "dr_grpo": "GRPOTrainer, loss_type: dr_grpo, scale_rewards: none",
    "gkd": "GKDTrainer (experimental), lmbda: 0; its loss leaves its temperature out",
    "gold": "GOLDTrainer (experimental), use_uld_loss; its merge `observed` reads each distribution a place too late",
    "gmpo": "GMPOTrainer (experimental)",
    "grpo": "GRPOTrainer, loss_type: grpo",
    "gspo": "GRPOTrainer, loss_type: grpo, importance_sampling_level: sequence",
    "gspo_token": "GRPOTrainer, importance_sampling_level: sequence_token (experimental, up to 1.13)",
    "iw_opd": "IWOPDTrainer (experimental); its iw_opd_gamma is gamma",
    "kto": "KTOTrainer; loss_type is loss",
    "luspo": "GRPOTrainer, loss_type: luspo, importance_sampling_level: sequence",
    "minillm": "MiniLLMTrainer (experimental, up to 1.12); its defaults are gamma: 0, own: true",
    "nash_md": "NashMDTrainer (experimental, up to 1.13)",
    "online_dpo": "OnlineDPOTrainer (experimental)",
    "opd": "DistillationTrainer; its beta is mixture",
    "orpo": "ORPOTrainer (experimental)",
    "ppo": "PPOTrainer (experimental, up to 1.12)",
    "process_reward_model": "PRMTrainer (experimental, up to 1.13)",
    "reward_model": "RewardTrainer; its center_rewards_coefficient is center_coefficient",
    "rloo": "RLOOTrainer",
    "sdft": "SDFTTrainer (experimental); distillation_mode, distillation_alpha and distillation_topk are estimate, alpha and top_k",
    "sdpo": "SDPOTrainer (experimental); distillation_weight is weight, success_reward_threshold is success",
    "ssd": "SSDTrainer (experimental, up to 1.15)",
    "sapo": "GRPOTrainer, loss_type: sapo",
    "sft": "SFTTrainer, loss_type: nll or dft; its neftune_noise_alpha is neftune_alpha",
    "simpo": "CPOTrainer (experimental), loss_type: simpo, cpo_alpha: 0; its simpo_gamma is gamma",
    "tpo": "TPOTrainer (experimental); its tpo_l_gamma is gamma, its loss tpo-l is tpo_l",
    "vespo": "GRPOTrainer, loss_type: vespo",
    "xpo": "XPOTrainer (experimental, up to 1.13)",
}
"""What TRL 1.16 calls an objective, or the last release that had it."""

TRL_CORRECTIONS: Mapping[str, str] = {
    "icepop": "vllm_importance_sampling_mode: token_mask",
    "off_policy_mask": "off_policy_mask_threshold",
    "sequence_mask": "vllm_importance_sampling_mode: sequence_mask, which also weighs the rollouts that it keeps",
    "sequence_tis": "vllm_importance_sampling_mode: sequence_truncate",
    "tis": "vllm_importance_sampling_mode: token_truncate",
}

BASELINES = {
    "group": "with its group's mean",
    "leave_one_out": "with its siblings' mean",
    "batch": "with the step's mean",
    "running": "with earlier steps' mean",
    "none": "with nothing",
}
COMPARED_ROWS: Mapping[DataKind, str] = {
    "supervised": "with nothing",
    "preference": "two by two",
    "unpaired": "by their labels",
    "stepwise": "by labels of steps",
}
ROWS: Mapping[DataKind, str] = {
    "supervised": "a dataset of texts, messages, or prompts and completions: dataset, in the place of env",
    "preference": "a dataset of chosen and rejected completions: dataset, in the place of env",
    "unpaired": "a dataset of completions with a label each: dataset, in the place of env",
    "stepwise": "a dataset of completions in steps with a label each: dataset, in the place of env",
}
TOPICS = ("corrections", "kl")


def facts_of_all() -> list[Facts]:
    """Every registered objective in a few words, by family."""
    known = objectives.registered()
    familiar = {name: family for family, names in FAMILIES.items() for name in names}
    return [
        {
            "name": name,
            "family": familiar.get(name, OTHERS),
            "compares": _compares(known[name]),
            "needs": [short for short, _ in _needs(known[name]) if short],
            "requires": _requires(known[name]),
            "summary": known[name].summary,
        }
        for name in [*familiar, *(name for name in known if name not in familiar)]
    ]


def facts_of(name: str) -> Facts:
    """Everything about one objective, or about the topic `corrections` or `kl`. Raises `ConfigError` for a name that there is not."""
    if name == "corrections":
        return {
            "topic": name,
            "about": _prose(corrections.__doc__),
            "corrections": [*map(_correction, corrections.CORRECTIONS)],
            "taken_by_none": [
                row.name for row in objectives.registered().values() if row.data is None and "corrections" not in row.config.model_fields
            ],
        }
    if name == "kl":
        return {"topic": name, "about": _prose(kl.__doc__), "gradients": list(_gradients())}
    objective = _found(name)
    options = _options(objective)
    return {
        "name": name,
        "summary": objective.summary,
        "formula": objective.formula.splitlines(),
        "source": objective.source,
        "trl": TRL.get(name),
        "compares": _compares(objective),
        "data": objective.data,
        "needs": [sentence for _, sentence in _needs(objective)],
        "requires": _requires(objective),
        "options": options,
        "paper_also": {key: value for key, value in objective.paper.items() if key not in objective.config.model_fields},
        "refused": list(objective.refused),
        "run_file": _run_file(objective, options),
    }


def _found(name: str) -> Objective:
    near = get_close_matches(name, TOPICS, n=1)
    if near and name not in objectives.registered():
        raise ConfigError(f"no objective is called {name!r}; did you mean the topic {near[0]!r}?")
    return objectives.get(name)


def _compares(objective: Objective) -> str:
    """What a rollout is compared with, under the defaults."""
    if objective.data is not None:
        return COMPARED_ROWS[objective.data]
    needs = _needs_of(objective)
    if needs is None:
        return "by its own options"
    if needs.pairs:
        return "two by two" if needs.rival is None else "with a rival's"
    if needs.rival is not None:
        return "with a rival's" if needs.rival < 1 else "with the reference's"
    if needs.critic is not None:
        return "with a critic's values"
    baseline = objective.config.model_fields.get("baseline")
    return BASELINES.get(str(baseline.default), "in its own way") if baseline is not None else "in its own way"


def _needs_of(objective: Objective) -> Needs | None:
    """By its default options; None where some have no default."""
    try:
        return objective.needs(objective.config(name=objective.name))
    except ValidationError:
        return None


def _requires(objective: Objective) -> Facts | None:
    needs = _needs_of(objective)
    return dataclasses.asdict(needs) if needs is not None else None


def _needs(objective: Objective) -> Iterator[tuple[str, str]]:
    """What a run has to provide: in a word or two, and in a sentence."""
    needs, options = _needs_of(objective), objective.config.model_fields
    if needs is None:
        missing = [name for name, field in options.items() if field.is_required()]
        yield "options", f"values of {', '.join(missing)}, on which the rest depends"
        return
    if objective.data is not None:
        yield "a dataset", ROWS[objective.data]
    if needs.group_size > 1:
        least = f"groups of at least {needs.group_size} rollouts"
        if needs.rival is not None:
            yield "even groups", f"{least}, an even number: group_size"
        else:
            yield f"groups of {needs.group_size}+", f"{least}: group_size"
    if needs.reference:
        yield "reference", "a reference: the model that training starts from, and one forward pass more"
    elif "beta" in options:
        yield "", "with beta > 0 a reference, and one forward pass more"
    if needs.teacher is not None:
        yield _teacher(needs.teacher, rewards=needs.rewards)
    elif not needs.rewards and objective.data is None:
        yield "no rewards", "prompts alone: no rewards"
    if needs.critic is not None:
        head = needs.critic.kind == "head"
        yield (
            "critic",
            "a critic: a value head on the policy" if head else "a critic: a model of the policy's size (critic: head shares its own)",
        )
    if needs.pairs and objective.data is None:
        yield "pairs", "pairs of rollouts that differ in reward: a group of equal rewards trains nothing"
    if needs.rival is not None:
        yield "rivals", _rivals(needs.rival)
    if needs.judge or "preferences" in options:
        yield "(judge)", "with preferences: judge, an environment that compares (`compare`), or `judge` beside a dataset"
    if needs.start:
        yield "one more pass", "the learner's own log-probs before the step's first update: one forward pass more"
    if needs.signal:
        yield "dynamic sampling", "more groups than it trains: those of equal rewards are played again elsewhere (dynamic_sampling)"
    if needs.passes * needs.minibatches > 1:
        times = f"{needs.passes} x {needs.minibatches}"
        yield f"{times} updates", f"{times} optimizer steps for each step of the run: epochs x minibatches; one forward pass more"
    elif "minibatches" in options:
        entropy = ", top_entropy < 1 or entropy_target" if "top_entropy" in options and not needs.start else ""
        yield "", f"with epochs x minibatches > 1{entropy}, one forward pass more"


def _teacher(asked: Teacher, *, rewards: bool) -> tuple[str, str]:
    more = "" if rewards else "; no rewards"
    if asked.who == "others":
        which = "the same" if asked.words is None else "any"
        return "a teacher", f"a teacher of {which} tokenizer: teacher{more}"
    copies = "no copy" if asked.who == "live" else "a frozen copy"
    told = "a column privileged_context" if asked.prompt is not None and asked.prompt.shows == "row" else "groups in which some succeed"
    return "itself as teacher", f"itself as its teacher, by {copies} of it (teacher: base | live | ema), and {told}{more}"


def _rivals(share: float) -> str:
    if share < 1:
        return f"rivals: half of each group is sampled by a mixture with {share:g} of the reference; only the embedded engine mixes"
    return "rivals: half of each group is sampled by the reference; the embedded engine holds a copy, vLLM needs GPUs and learner.lora"


def _options(objective: Objective) -> list[Facts]:
    """Its own first, then shared ones with another default, then those that leave no choice, then the shared ones as they are."""
    config = objective.config
    common = policy.PolicyConfig.model_fields if issubclass(config, policy.PolicyConfig) else {}
    found = [_option(name, config, objective.paper.get(name)) for name in config.model_fields if name != "name"]
    return sorted(found, key=lambda one: (one["shared"], one["fixed"], one["name"] in common))


def _option(name: str, config: type[BaseModel], paper: str | None = None) -> Facts:
    field = config.model_fields[name]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return {
        "name": name,
        "values": values_of(field.annotation, field.metadata),
        "required": field.is_required(),
        "fixed": field.annotation is types.NoneType or len(get_args(field.annotation)) == 1 == (get_origin(field.annotation) is Literal),
        "default": default,
        "paper": paper,
        "description": _description(name, config),
        "shared": issubclass(config, policy.PolicyConfig) and _is_shared(name, field),
    }


def _description(name: str, config: type[BaseModel]) -> str:
    """An option's docstring, or that of the option it takes the place of."""
    for kind in config.__mro__:
        field = kind.model_fields.get(name) if issubclass(kind, BaseModel) else None
        if field is not None and field.description:
            return " ".join(field.description.split())
    return ""


def _is_shared(name: str, field: FieldInfo) -> bool:
    """Whether every policy-gradient objective has the option, with this default and these values."""
    common = policy.PolicyConfig.model_fields.get(name)
    return common is not None and (common.annotation, common.default) == (field.annotation, field.default)


def values_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The values that an option takes, in words: `number > 0, <= 1`, `head | model`, `true | false`."""
    if hasattr(annotation, "__metadata__"):
        inner = annotation.__metadata__
        bounds = [one for item in inner for one in getattr(item, "metadata", [item])]
        return values_of(annotation.__origin__, [*metadata, *bounds])
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(part) for part in parts) if len(parts) > 1 else f"only {parts[0]}"
    if origin in (Union, types.UnionType):
        if all(isinstance(part, type) and issubclass(part, BaseModel) for part in parts):
            return "section"
        return " | ".join(values_of(part, metadata if part is not types.NoneType else ()) for part in parts)
    if origin is dict:
        return f"section of {values_of(parts[1])}s"
    if origin in (list, tuple):
        return f"list of {values_of(parts[0])}s"
    words = {int: "whole number", float: "number", str: "text", bool: "true | false", types.NoneType: "null"}
    bounds = [f"{mark} {getattr(one, key):g}" for one in metadata for key, mark in MARKS.items() if getattr(one, key, None) is not None]
    return f"{words.get(annotation, 'section')} {', '.join(bounds)}".rstrip()


MARKS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _run_file(objective: Objective, options: Sequence[Facts]) -> str:
    """The least that trains with it, with its first own options at their defaults."""
    own = [one for one in options if not (one["shared"] or one["fixed"] or one["required"] or one["default"] is None)][:2]
    source = "env: arithmetic" if objective.data is None else "dataset: train.jsonl"
    needs = _needs_of(objective)
    taught = ["teacher: path/to/teacher"] if needs is not None and needs.teacher is not None and needs.teacher.who == "others" else []
    lines = ["model: quickstart", source, *taught, "objective:", f"  name: {objective.name}"]
    return "\n".join([*lines, *(f"  {one['name']}: {as_yaml(one['default'])}" for one in own)])


def as_yaml(value: Any) -> str:
    """A default as a run file writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _correction(name: str) -> Facts:
    kind = corrections.CORRECTIONS[name]
    return {
        "name": name,
        "does": "weighs" if kind.weighs else "masks",
        "acts_on": "rollouts" if kind.by_sequence else "tokens",
        "formula": kind.formula,
        "about": _prose(kind.__doc__),
        "trl": TRL_CORRECTIONS.get(name),
        "options": [_option(option, kind) for option in kind.model_fields if option != "name"],
        "refused_by": [row.name for row in objectives.registered().values() if not _takes(row, name)],
    }


def _takes(objective: Objective, correction: str) -> bool:
    """Whether it does not refuse this one; where it has no corrections, or options without defaults, nobody can say."""
    plain = {"name": objective.name}
    if "corrections" not in objective.config.model_fields or not _valid(objective, plain):
        return True
    return _valid(objective, {**plain, "corrections": [{"name": correction}]})


def _valid(objective: Objective, options: Facts) -> bool:
    try:
        objective.config.model_validate(options)
    except ValidationError:
        return False
    return True


def _gradients() -> Iterator[Facts]:
    """The rows of the table in the module's docstring; a cell may hold `||`."""
    rows = [re.split(r"(?<!\|)\|(?!\|)", line.strip("| ")) for line in (kl.__doc__ or "").splitlines() if line.startswith("| ")]
    for where, estimate, on_policy, off_policy in rows[1:]:
        yield {"where": where.strip(), "estimate": estimate.strip(), "on_policy": on_policy.strip(), "off_policy": off_policy.strip()}


def _prose(docstring: str | None) -> list[str]:
    """Paragraphs without line breaks; tables left out."""
    paragraphs = (docstring or "").split("\n\n")
    return [" ".join(one.split()) for one in paragraphs if one.strip() and not one.startswith("|")]
