"""Objectives by name: our own rows, those of installed packages, and those that a run registers itself."""

from __future__ import annotations

import importlib.metadata
import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agentrl.config_errors import sentences
from agentrl.errors import ConfigError
from agentrl.objectives.a2po import A2PO
from agentrl.objectives.base import Objective
from agentrl.objectives.bco import BCO
from agentrl.objectives.bnpo import BNPO
from agentrl.objectives.cpo import ALPHAPO, CPO, CPO_SIMPO, SIMPO
from agentrl.objectives.distillation import GKD, OPD
from agentrl.objectives.dpo import DPO
from agentrl.objectives.dppo import DPPO
from agentrl.objectives.gold import GOLD
from agentrl.objectives.grpo import DAPO, DR_GRPO, GRPO
from agentrl.objectives.iw_opd import IW_OPD
from agentrl.objectives.kto import KTO
from agentrl.objectives.minillm import MINILLM
from agentrl.objectives.nash_md import NASH_MD
from agentrl.objectives.orpo import ORPO
from agentrl.objectives.ppo import DECOUPLED_PPO, PPO
from agentrl.objectives.preference import ONLINE_DPO, XPO
from agentrl.objectives.prm import PROCESS_REWARD_MODEL
from agentrl.objectives.reward_model import REWARD_MODEL
from agentrl.objectives.rloo import RLOO
from agentrl.objectives.selected import CLIP_COV, KL_COV, M2PO
from agentrl.objectives.self_distillation import SDFT, SDPO
from agentrl.objectives.sequence_ratio import GMPO, GSPO, GSPO_TOKEN, LUSPO
from agentrl.objectives.sft import SFT
from agentrl.objectives.ssd import SSD
from agentrl.objectives.tpo import TPO
from agentrl.objectives.weighted import AIPO, CISPO, REINFORCE, SAPO, VESPO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agentrl.objectives.base import ObjectiveConfig

BUILT_IN = (
    *(GRPO, DR_GRPO, BNPO, DAPO, GSPO, GSPO_TOKEN, GMPO, LUSPO, CISPO, AIPO, SAPO, VESPO, DPPO, M2PO, CLIP_COV, KL_COV),
    *(RLOO, REINFORCE, A2PO, PPO, DECOUPLED_PPO),
    *(ONLINE_DPO, NASH_MD, XPO),
    *(GKD, OPD, MINILLM, IW_OPD),
    *(GOLD, SDFT, SDPO, SSD),
    *(SFT, REWARD_MODEL, PROCESS_REWARD_MODEL),
    *(DPO, ORPO, CPO, SIMPO, CPO_SIMPO, ALPHAPO, TPO, KTO, BCO),
)
_objectives: dict[str, Objective] = {objective.name: objective for objective in BUILT_IN}


def register(objective: Objective) -> Objective:
    """Add an objective under its own name and return it. Registering the same definition again (a second import) is harmless.

    Raises `ConfigError` where another definition has the name. Example: `register(Objective(name="mine", config=MyConfig, ...))`
    in a module that the run file's `imports` names.
    """
    known = _objectives.get(objective.name)
    if known is not None and _origin(known) != _origin(objective):
        raise ConfigError(f"objective {objective.name!r} is already registered by {known.config.__module__}; choose another name")
    _objectives[objective.name] = objective
    return objective


def _origin(objective: Objective) -> tuple[str, str]:
    return objective.config.__module__, objective.config.__qualname__


def registered() -> dict[str, Objective]:
    """Every objective by name, sorted; those of installed packages come from the entry point group `agentrl.objectives`."""
    for point in importlib.metadata.entry_points(group="agentrl.objectives"):
        if point.name not in _objectives:
            loaded = point.load()
            if not isinstance(loaded, Objective) or loaded.name != point.name:
                raise ConfigError(f"entry point {point.name!r} ({point.value}) must be an Objective of that name, got {loaded!r}")
            _objectives[point.name] = loaded
    return dict(sorted(_objectives.items()))


def get(name: str) -> Objective:
    """The objective of a name; raises `ConfigError` with the nearest name where there is none."""
    if name in _objectives:
        return _objectives[name]
    known = registered()
    if name in known:
        return known[name]
    hint = f"{_nearest(name, known)} Known: {', '.join(known)}"
    raise ConfigError(f"no objective is called {name!r}{hint}. One of your own is registered by a module that `imports` names")


def validate(options: Mapping[str, Any]) -> ObjectiveConfig:
    """Turn the `objective` section of a run file into the objective's own config.

    Args:
        options: `name` and the objective's own keys.

    Raises `ConfigError` naming each wrong key or value, and the nearest key for an unknown one.
    """
    name = options.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"objective.name must be a text, got {name!r}; write `objective: grpo` or `objective: {{name: grpo, ...}}`")
    config = get(name).config
    try:
        return config.model_validate_json(json.dumps(dict(options), default=str), strict=True)
    except ValidationError as error:
        known = [f"objective.{key}" for key in config.model_fields]
        mistakes = sentences(error, config, known=known, prefix=("objective",))
        raise ConfigError("\n".join(mistakes.values())) from None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = sorted(get_close_matches(name, list(known)), key=lambda other: sorted(other) != sorted(name))  # swapped letters first
    return f"; did you mean {near[0]!r}?" if near else "."
