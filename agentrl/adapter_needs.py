"""Whether a run can train the adapter, and keep the average of weights, that its run file asks for; said before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.adapter_folder import settled, whole_only
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.config import RunConfig
    from agentrl.objectives import Needs

LORA = ("learner", "lora")


def mistakes_of_adapter(config: RunConfig, needs: Needs, name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong, each with the key that would have to change.

    Args:
        config: the run file.
        needs: of the objective under its options.
        name: of the objective.
    """
    lora = config.learner.lora
    if lora is None:
        return
    if lora.adapter is not None:
        try:
            settled(lora)
        except ConfigError as error:
            yield (*LORA, "adapter"), str(error)
            return
        if needs.reference and lora.reference is None:
            yield (
                (*LORA, "reference"),
                f"`learner.lora.reference` is not set, and objective {name!r} measures an adapter that is continued against a reference: "
                "set base for the model without the adapter, or start for the model with it as this run begins",
            )
    if lora.reference == "start" and needs.rival is not None:
        yield (
            (*LORA, "reference"),
            f"`learner.lora.reference` is start, and objective {name!r} has the engine sample from the reference, which is the model "
            "without the adapter: set base, or merge the adapter (`agentrl merge`) and train a new one",
        )
    if lora.quantize is not None and config.learner.ranks > 1 and config.learner.sharding == "fsdp2":
        yield (*LORA, "quantize"), "`learner.lora.quantize` holds layers in codes that FSDP2 cannot split: set learner.sharding=ddp"
    reason = whole_only(lora)
    if config.engine.transport == "lora" and reason:
        yield (
            ("engine", "transport"),
            f"`engine.transport` is lora, and {reason}: set engine.transport=auto, which sends the merged weights",
        )
