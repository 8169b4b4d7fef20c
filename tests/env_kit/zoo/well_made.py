"""Environments that nothing is wrong with."""

from agentrl import Environment


class Good(Environment):
    """Say the number; a tool knows it."""

    def tasks(self, split):
        return [{"prompt": f"Say number {index} of {split}.", "answer": f"{7 * index + 1000 + (split == 'eval')}"} for index in range(4)]

    def start(self, task):
        self.row = task.row
        return [{"role": "user", "content": task.row["prompt"]}]

    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        return 2 * number

    def score(self, episode):
        return float(episode.answer == episode.task.row["answer"])

    def golden(self, task):
        return ['<tool_call>{"name": "double", "arguments": {"number": 4}}</tool_call>', task.row["answer"]]


class ToolsRaise(Good):
    """Nothing is wrong with it: what a tool raises or returns is an observation."""

    def double(self, number: int) -> object:
        """Double a number.

        Args:
            number: any.
        """
        raise MemoryError

    def blob(self) -> object:
        """Give bytes."""
        return bytes(range(256)) * 1000

    def surrogate(self) -> str:
        """Give what is no text."""
        return "\ud800" * 100_000

    def thing(self) -> object:
        """Give an object."""
        return object()


class Talks(Good):
    """Plays its episodes itself: two calls, the second is the answer. Nothing is wrong with it."""

    async def episode(self, task, llm):
        messages = [{"role": "user", "content": task.row["prompt"]}]
        first = await llm.chat(messages)
        reply = await llm.chat([*messages, first.message, {"role": "user", "content": "Sure?"}])
        return float(reply.message["content"] == task.row["answer"])

    def golden(self, task):
        return ["Let me think.", task.row["answer"]]
