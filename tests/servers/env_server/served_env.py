"""Environments that the tests serve by path."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from agentrl.environment import Environment, FunctionTool, ToolError, tool_limits
from agentrl.llm import BudgetSpent, SamplingFailed
from agentrl.records import Score


class Tools(Environment):
    """Tools of every kind."""

    system = "You have tools."

    def tasks(self, split: Any) -> Any:
        return [{"prompt": f"task {number}"} for number in range(6)]

    def start(self, task: Any) -> Any:
        self.max_tokens = 64
        return [{"role": "user", "content": task.row.get("prompt", "hi")}]

    def toolbox(self) -> Any:
        number = {"type": "integer", "minimum": 3}
        return [FunctionTool(name="dice", description="Roll.", parameters={"properties": {"name": number}}, call=lambda name=1: name * 2)]

    @tool_limits(timeout_s=77.0, max_output_chars=9000)
    def wide(self, count: int) -> str:
        """Say much, with limits of its own.

        Args:
            count: how much.
        """
        return "w" * count

    def much(self, count: int) -> str:
        return "m" * count

    def refuse(self, arguments: str = "") -> str:
        raise ToolError(f"refused {arguments}")

    def hang(self) -> str:
        threading.Event().wait()
        return ""

    def die(self) -> str:
        os._exit(7)

    def score(self, episode: Any) -> Any:
        parts = {"length": float(len(episode.answer)), "turns": 0.25 * len(episode.messages)}
        return Score(value=sum(parts.values()), parts=parts, reason="counted", details={"messages": len(episode.messages)})


class Duel(Environment):
    """Plays its episode itself, as its row says."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def episode(self, task: Any, llm: Any) -> Any:
        prompt, kind = [{"role": "user", "content": "hi"}], task.row["kind"]
        if kind == "raise":
            raise ZeroDivisionError("by nothing")
        if kind == "nobody":
            try:
                await llm.chat(prompt, policy="nobody")
            except SamplingFailed as error:
                return {"refused": float("nobody" in str(error))}
        first = await llm.chat(prompt)
        llm.reward(0.5)
        if kind == "score":
            self.heard.append(first.text)
            return None
        if kind == "wait":
            await asyncio.Event().wait()
        more = [*prompt, first.message, {"role": "user", "content": "more"}]
        if kind == "overlap":
            replies = await asyncio.gather(llm.chat(more), llm.chat("plain"), llm.chat([{"role": "user", "content": "last"}]))
            return [float(len(reply.text)) for reply in replies][1]
        if kind == "drop":
            dropped = asyncio.create_task(llm.chat("never answered"))
            await llm.chat(more)
            dropped.cancel()
            return 3.0
        second = await llm.chat(more, max_tokens=8)
        third = await llm.chat("plain", train=False)
        llm.reward(0.25, reply=second)
        try:
            await llm.chat([{"role": "user", "content": "last"}])
        except BudgetSpent:
            if kind == "spent":
                raise
            return 100.0 * len(second.text) + len(third.text)
        return 7.0

    def score(self, episode: Any) -> float | None:
        return float(len(episode.answer) + len(self.heard)) if episode.answer else None
