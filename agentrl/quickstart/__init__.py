"""A small model that the project makes itself, and the script that makes it (`python -m agentrl.quickstart.build`)."""

from __future__ import annotations

from importlib.resources import files


def model_path() -> str:
    """Folder of the model that ships with the package; `AutoModelForCausalLM` and `AutoTokenizer` load it without a network."""
    return str(files(__name__) / "model")
