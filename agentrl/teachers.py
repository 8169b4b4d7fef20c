"""What must hold of teachers before a run starts: that they are named where they are needed, and that their tokens mean the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl import objectives
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.objectives import Needs
    from agentrl.objectives.needs import Teacher

PROBES = (
    "The quick brown fox, 12345.67 + 8 = ?\n\tdef f(x): return x ** 2  # done",
    "  leading blanks, trailing blanks  ",
    "caf\u00e9 na\u00efve \u4f60\u597d \u0437\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 \U0001f642",
)
"""Texts on which tokenizers that differ in anything but their words usually differ."""
SHOWN = 3
"""Words that a message shows."""


def mistakes_of_teachers(config: RunConfig, needs: Needs, name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with the run file's `teacher`, each with the key that would have to change.

    Args:
        config: the run file.
        needs: of the objective under its options.
        name: of the objective.
    """
    others = needs.teacher is not None and needs.teacher.who == "others"
    if others and not config.teacher:
        yield ("teacher",), f"objective {name!r} learns from a teacher: set `teacher: FOLDER`, or a Hub name"
    if not others and config.teacher:
        what = "from itself" if needs.teacher is not None else "from no teacher with these options"
        yield ("teacher",), f"objective {name!r} learns {what}: remove `teacher`, or take gkd or opd"
    if others and needs.teacher is not None:
        yield from _mistakes_of_served(config, needs.teacher, name)
        if needs.teacher.writes:
            yield from _mistakes_of_writing(config)


def _mistakes_of_writing(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong where the teacher writes the texts."""
    if len(config.teacher) > 1:
        yield ("teacher",), f"`objective.seq_kd` lets the teacher write the texts, and there are {len(config.teacher)}: name one"
    if any(one.servers for one in config.teacher):
        yield (
            ("teacher",),
            "`objective.seq_kd` has the teacher write in process, and `teacher.servers` is set: leave servers out and load it beside the "
            "policy, or have it play the prompts in a run of its own and train on `dataset: rollouts:RUN`",
        )
    if config.data.packing != "none":
        yield (
            ("data", "packing"),
            f"`data.packing` is {config.data.packing}, and `objective.seq_kd` has texts that are not written before their step: set "
            "data.packing=none",
        )


def _mistakes_of_served(config: RunConfig, asked: Teacher, name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a teacher on servers, which gives log-probs of some tokens at temperature 1, cannot be asked for; or one in other words."""
    if asked.words is not None and (len(config.teacher) > 1 or any(one.servers for one in config.teacher)):
        yield ("teacher",), f"objective {name!r} reads one teacher in its own vocabulary, in process: name one `model`, without servers"
        return
    served = [one for one in config.teacher if one.servers]
    if not served:
        return
    if asked.divergence is not None and asked.top_k is None:
        yield (
            ("teacher",),
            f"`teacher.servers` give the log-probs of a few tokens, and objective {name!r} compares whole distributions with these "
            "options: set objective.top_k (of opd, objective.estimate too), or leave servers out and load the teacher beside the policy",
        )
    if asked.logprobs and len(served) < len(config.teacher):
        said = "`teacher` names one on servers and one in process, and their log-probs are averaged"
        yield ("teacher",), f"{said}: let all be the one or the other"
    for one in served:
        own = config.sampling.temperature if asked.temperature is None else asked.temperature
        temperature = own if one.temperature is None else one.temperature
        if temperature != 1:
            yield (
                ("teacher",),
                f"`teacher.servers` give log-probs at temperature 1, and those of teacher {one.name!r} are asked for at {temperature:g}: "
                "set objective.temperature=1 or sampling.temperature=1, or load the teacher beside the policy",
            )


def with_teachers(config: RunConfig, model_dir: str, resolve: Callable[[str], str]) -> RunConfig:
    """The run file with its teachers' folders in the place of names; raises `ConfigError` where a tokenizer is not the policy's.

    Args:
        config: the run file.
        model_dir: of the policy.
        resolve: the folder or Hub name behind a `model`.
    """
    if not config.teacher:
        return config
    found = [one.model_copy(update={"model": resolve(one.model)}) for one in config.teacher if one.model is not None]
    asked = objectives.get(config.objective["name"]).needs(objectives.validate(config.objective)).teacher
    if asked is None or asked.words is None:
        for one in found:
            check_tokenizers(model_dir, str(one.model), one.name)
    return config.model_copy(update={"teacher": found})


def check_tokenizers(policy: str, teacher: str, name: str) -> None:
    """Raise `ConfigError` where the two folders' tokenizers do not give equal ids for equal text, with what differs.

    Names and files may differ: compared are the vocabularies and what becomes of a few texts.
    """
    from agentrl.rollout.tokenizer import load_tokenizer

    difference = tokenizer_difference(load_tokenizer(policy), load_tokenizer(teacher))
    if difference is not None:
        raise ConfigError(
            f"the tokenizers of the policy {policy!r} and of teacher {name!r} ({teacher!r}) do not match: {difference}. "
            "Distributions can only be compared token by token where both read the same tokens: take a teacher of the policy's family, or "
            "`objective: gold`"
        )


def tokenizer_difference(policy: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str | None:
    """How two tokenizers differ, in words; None where they do not."""
    own, other = policy.get_vocab(), teacher.get_vocab()
    if own != other:
        moved = sorted(word for word in own.keys() & other.keys() if own[word] != other[word])
        missing, further = sorted(own.keys() - other.keys()), sorted(other.keys() - own.keys())
        said = [f"{len(moved)} words have other ids ({_shown(moved, own, other)})"] if moved else []
        said += [f"{len(missing)} words are the policy's alone ({_words(missing)})"] if missing else []
        said += [f"{len(further)} are the teacher's alone ({_words(further)})"] if further else []
        return f"their vocabularies have {len(own)} and {len(other)} words; " + ", ".join(said)
    for text in PROBES:
        ids = [list(one.encode(text, add_special_tokens=False)) for one in (policy, teacher)]
        if ids[0] != ids[1]:
            at = next((index for index, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), min(map(len, ids)))
            return f"their vocabularies are equal, and they cut {text[:40]!r} otherwise, from token {at} on"
    return None


def _words(words: list[str]) -> str:
    return ", ".join(map(repr, words[:SHOWN])) + (", ..." if len(words) > SHOWN else "")


def _shown(words: list[str], own: dict[str, int], other: dict[str, int]) -> str:
    return ", ".join(f"{word!r} is {own[word]} and {other[word]}" for word in words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")
