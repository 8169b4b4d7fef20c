"""A reward for the rows of `test_mcp_tools`."""

from agentrl.rewards.extract import completion_text


def said_sum(completions, answer, **_):
    """1 where the completion is the sum."""
    return [float(completion_text(said) == str(right)) for said, right in zip(completions, answer, strict=True)]
