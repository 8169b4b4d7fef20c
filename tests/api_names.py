"""Things with names that other processes can import, for test_api.py."""


def odd(**_):
    """A reward."""
    return [1.0]


def longer(prompts, completions):
    """A judge."""
    return [int(len(second) > len(first)) for first, second in completions]


class Reward:
    """A callable object."""

    def __call__(self, **_):
        """A reward."""
        return [1.0]

    def score(self, **_):
        """A reward."""
        return [1.0]
