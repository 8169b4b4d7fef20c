"""A game of one's own: agentrl train --env examples/custom_env.py:Guess --model quickstart."""

import re

import agentrl


@agentrl.register("guess")
class Guess(agentrl.Environment):
    """Find a number near a hint, in three tries."""

    max_turns = 3

    def tasks(self, split):
        held_out = range(10, 100, 5)
        return [{"number": number} for number in range(10, 100) if (number in held_out) == (split == "eval")]

    def start(self, task):
        self.number = task.row["number"]
        return [{"role": "user", "content": f"What is near {round(self.number, -1)}?"}]

    def reply(self, answer):
        guess = re.search(r"\d{1,3}", answer)
        if guess is None or int(guess[0]) == self.number:
            return None
        return "Higher." if int(guess[0]) < self.number else "Lower."

    def score(self, episode):
        guess = re.search(r"\d{1,3}", episode.answer)
        return max(0.0, 1 - abs(int(guess[0]) - self.number) / 50) if guess else 0.0
