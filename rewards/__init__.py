"""Reward functions and graders that come with agentrl; none of them imports torch."""
