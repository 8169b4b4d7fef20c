"""Who may import whom. Each rule is the answer to "what could I change without reading the rest?"."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PUBLIC = {"environment", "errors", "gold_audit", "llm", "records", "registry", "reward_call", "single_turn"}
"""What an environment or a reward may use: the same that a user's own may."""
SECTIONS = {"config_base", "config_data", "config_engine", "config_learner"}
"""Of a run file, beside `config`, which puts them together."""
BASE = {
    "checksum",
    "config",
    *SECTIONS,
    "config_errors",
    "errors",
    "examples",
    "adapter_folder",
    "records",
    "rows",
    "teacher_prompt",
    "wire",
}
ALLOWED = {
    "errors": set(),
    "gold_audit": {"errors"},
    "records": set(),
    "rows": {"records"},
    **{section: {"config_base", "errors"} for section in SECTIONS},
    "config": {*SECTIONS, "errors"},
    "examples": set(),
    "teacher_prompt": {"errors"},
    "llm": set(),
    "environment": {"errors", "llm", "records"},
    "single_turn": {"environment", "errors", "records", "reward_call"},
    "reward_call": {"errors", "records"},
    "registry": {"environment", "errors"},
    "wire": {"errors", "records"},
    "objectives": {*BASE, "objectives"},
    "data": {*BASE, "data", "imitation", "rollout", "rollout_log"},
    "learner": {*BASE, "learner", "objectives", "products"},
    "engines": {*BASE, "dispatch", "engines", "lifeline", "processes", "products", "scratch", "transfer_format"},
    "rollout": {*BASE, *PUBLIC - {"gold_audit", "reward_call"}, "dispatch", "engines", "lifeline", "processes", "rollout", "scratch"},
    "envs": {*PUBLIC, "envs", "rewards", "servers"},
    "rewards": {"environment", "errors", "records", "reward_call", "rewards", "servers"},
    "servers": {*PUBLIC, "config", "data", "lifeline", "processes", "rollout", "scratch", "servers", "transfer_format", "wire"},
}
"""Part of agentrl -> the parts that it may import, types included. Parts that are not named assemble the others."""
BY_NAME_ONLY = {"envs", "rewards", "servers"}
"""Never imported by the core, which finds them by their names like anybody else's."""
WITHOUT_TORCH = [
    "config",
    *sorted(SECTIONS),
    "config_errors",
    "environment",
    "errors",
    "llm",
    "records",
    "registry",
    "runfile",
    "wire",
    "cli",
    "progress",
]
WITHOUT_TORCH += [f"data.{name}" for name in ("convert", "faults", "mixtures", "schemas", "sources", "splits", "streams")]


def sources():
    """Every module as (dotted name, path)."""
    for folder in ("agentrl", *BY_NAME_ONLY):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT).with_suffix("").parts
            if folder == "agentrl" and inner[1] in BY_NAME_ONLY:
                continue  # through a link; the real folder is read
            yield ".".join(inner if folder == "agentrl" else ("agentrl", *inner)).removesuffix(".__init__"), path


def imported(path):
    """Absolute dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path):
    """The parts of agentrl that a file imports: `objectives` for `agentrl.objectives.grpo`."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("agentrl.")}


MODULES = dict(sources())


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_lies_below_it(part):
    for name, path in MODULES.items():
        if f"{name}.".startswith(f"agentrl.{part}."):
            above = parts_imported(path) - ALLOWED[part]
            assert not above, f"{name} imports {', '.join(sorted(above))} of agentrl; allowed: {', '.join(sorted(ALLOWED[part]))}"


def test_the_core_finds_environments_rewards_and_servers_by_name():
    for name, path in MODULES.items():
        if name.split(".")[1:2] and name.split(".")[1] not in BY_NAME_ONLY:
            assert not parts_imported(path) & BY_NAME_ONLY, name


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_reads_and_checks_a_run_takes_no_torch(module):
    heavy = {name.split(".")[0] for name in imported(MODULES[f"agentrl.{module}"])} & {"torch", "transformers", "accelerate", "peft"}
    assert not heavy


def test_no_submodule_hides_a_public_name():
    public = next(
        ast.literal_eval(node.value)
        for node in ast.parse(MODULES["agentrl"].read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert not {f"agentrl.{name}" for name in public} & set(MODULES)


def test_every_module_was_read():
    assert {"agentrl", "agentrl.envs.arithmetic", "agentrl.objectives.grpo", "agentrl.servers", "agentrl.run"} <= set(MODULES)
