"""Tool calls in golden turns, as Hermes and Qwen models write them."""

from __future__ import annotations

import json
from typing import Any


def golden_call(name: str, /, **arguments: Any) -> str:
    """A call of a tool as text. Example: `golden_call("look", city="Rome")`."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"
