"""All formats by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.rollout.tool_formats.gemma import FUNCTION_GEMMA, GEMMA
from agentrl.rollout.tool_formats.harmony import HARMONY
from agentrl.rollout.tool_formats.hermes import HERMES, QWEN_CODER
from agentrl.rollout.tool_formats.lists import COHERE, FUNCTOOLS, GRANITE, LLAMA, NEMOTRON, PHI
from agentrl.rollout.tool_formats.named import DEEPSEEK_V3, DEEPSEEK_V31, KIMI, MISTRAL, MISTRAL_ARGS
from agentrl.rollout.tool_formats.pythonic import LFM, LLAMA_PYTHONIC
from agentrl.rollout.tool_formats.tags import DEEPSEEK_TAGS, GLM, MINIMAX, SEED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentrl.rollout.tool_formats.base import ToolFormat

FORMATS: Mapping[str, ToolFormat] = {
    tool_format.name: tool_format
    for tool_format in (
        HERMES,
        QWEN_CODER,
        GLM,
        SEED,
        MINIMAX,
        MISTRAL,
        MISTRAL_ARGS,
        DEEPSEEK_V3,
        DEEPSEEK_V31,
        DEEPSEEK_TAGS,
        KIMI,
        GRANITE,
        PHI,
        FUNCTOOLS,
        NEMOTRON,
        COHERE,
        LFM,
        GEMMA,
        FUNCTION_GEMMA,
        HARMONY,
        LLAMA,
        LLAMA_PYTHONIC,
    )
}
"""Those with marks of their own before those without."""
