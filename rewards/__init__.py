"""Reward functions and graders that come with agentrl; none imports torch before a reward model is asked."""
