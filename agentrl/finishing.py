"""What a run leaves for everybody else, online or offline: the model with its card, and its push to the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.hub import Pusher, check_can_push
from agentrl.loggers import Loggers
from agentrl.model_card import CardFacts, write_card

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.interrupt import Interrupt
    from agentrl.learner import Learner
    from agentrl.progress import Progress
    from agentrl.run_folder import RunFolder


def pushes_after(config: RunConfig, step: int) -> bool:
    """Whether weights are exported to be pushed after this optimizer step: on every rank alike, since an export is a collective.

    Not after the last one, whose weights are pushed as the final model.
    """
    return config.hub is not None and config.hub.every is not None and step % config.hub.every == 0 and step < config.num_steps


def open_pusher(config: RunConfig, folder: RunFolder, say: Callable[[str], None]) -> Pusher | None:
    """What pushes, where the run file names a repository. Raises `ConfigError` for what would make each push fail."""
    if config.hub is None:
        return None
    check_can_push(config.hub)
    return Pusher(config.hub, folder.path, say)


def open_loggers(config: RunConfig, folder: RunFolder, say: Callable[[str], None], *, step: int) -> Loggers:
    """Give what is logged from here on to whatever else the run file names. Raises `ConfigError` where one is not installed.

    Args:
        config: names them.
        folder: the run's.
        say: tells the user.
        step: optimizer steps done before.
    """
    loggers = Loggers(config, folder.path, step=step, say=say)
    folder.on_logged = loggers.log
    return loggers


def write_model(
    folder: RunFolder,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase | None,
    config: RunConfig,
    *,
    data: Mapping[str, float] | None = None,
    schema: str = "",
    best: str = "",
) -> None:
    """Write `model/` with its card; on the rank that writes, inside a collective.

    Args:
        folder: the run's.
        learner: has the weights.
        tokenizer: laid beside them.
        config: as it was in force.
        data: counts of a dataset's rows.
        schema: of these rows.
        best: the evaluation that the weights are from, in words; empty for the last step.
    """
    with folder.writing_model() as draft:
        learner.export(draft, tokenizer)
        write_card(draft, folder.path, config, _facts(learner, data or {}, schema, best))


def _facts(learner: Learner, data: Mapping[str, float], schema: str, best: str) -> CardFacts:
    trained = {id(one) for one in learner.models.trained}
    own = list(learner.policy.parameters())
    whole = {"parameters": sum(one.numel() for one in own), "trained_parameters": sum(one.numel() for one in own if id(one) in trained)}
    packed = any(not one.is_floating_point() for one in own)  # a quantized tensor's size is not that of what it stands for
    return CardFacts(data=dict(data), schema=schema, best=best, **({} if packed else whole))


def push_while_training(
    pusher: Pusher | None,
    folder: RunFolder,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase | None,
    config: RunConfig,
    *,
    data: Mapping[str, float] | None = None,
    schema: str = "",
) -> None:
    """Export the weights as they are, with a card, and begin to push them; on the rank that writes, where `pushes_after` says so.

    Args:
        pusher: None takes part in no push.
        folder: the run's.
        learner: has the weights.
        tokenizer: laid beside them.
        config: as it is in force.
        data: counts of a dataset's rows.
        schema: of these rows.
    """
    if pusher is None or (pusher.is_busy(learner.step) and learner.accelerator.num_processes == 1):
        return
    with folder.writing_push(learner.step) as draft:
        learner.export(draft, tokenizer)
        write_card(draft, folder.path, config, _facts(learner, data or {}, schema, ""))
    pusher.start(folder.push_folder(learner.step), learner.step)


def push_at_end(pusher: Pusher | None, folder: RunFolder, step: int, progress: Progress, interrupt: Interrupt) -> None:
    """Push the final model and wait for that, unless Ctrl-C breaks it off: the model is there, and the run is done."""
    if pusher is None:
        return
    progress.waiting("the push to the Hub")
    try:
        with interrupt.waiting():
            pusher.finish(folder.model, step)
    except KeyboardInterrupt:
        pusher.close()
        progress.message(f"the push was broken off; again: agentrl push {folder.path}")
