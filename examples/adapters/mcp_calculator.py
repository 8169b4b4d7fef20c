"""An environment with the tools of an MCP server: agentrl train --env examples/adapters/mcp_calculator.py:Calculator --model quickstart.

The server is this very file, run as a program of its own for each episode. It needs the package mcp (pip install "agentrl[mcp]").
For rows of a file no Python is needed: --env "mcp:python server.py?dataset=rows.jsonl&rewards=rewards.py:right".
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.environment import Environment, Episode, FunctionTool, Split
from agentrl.envs.adapters.mcp_tools import McpTools
from agentrl.rewards.extract import answer_text


class Calculator(Environment):
    """Multiply two numbers with a calculator."""

    max_turns = 4

    def __init__(self) -> None:
        self._tools = McpTools([sys.executable, __file__])

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """Products; every tenth is held out."""
        pairs = [(a, b) for a in range(12, 60) for b in range(12, 60) if (a * b % 10 == 0) == (split == "eval")]
        return [{"prompt": [{"role": "user", "content": f"What is {a} times {b}?"}], "answer": a * b} for a, b in pairs]

    def toolbox(self) -> list[FunctionTool]:
        """What the server offers."""
        return self._tools.toolbox()

    def score(self, episode: Episode) -> float:
        """1 for the product."""
        return float(answer_text(episode.answer) == str(episode.task.row["answer"]))

    def close(self) -> None:
        """End the server."""
        self._tools.close()


def serve() -> None:
    """The server."""
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("calculator")

    @server.tool()
    def multiply(a: int, b: int) -> int:
        """Multiply two whole numbers."""
        return a * b

    server.run("stdio")


if __name__ == "__main__":
    serve()
