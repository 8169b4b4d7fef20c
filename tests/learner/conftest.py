from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))

from typing import TYPE_CHECKING

import learner_fakes

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _one_quiet_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folders with tiny random models, made once for each set of options."""
    made: dict[str, str] = {}

    def folder(**options: object) -> str:
        key = repr(sorted(options.items()))
        if key not in made:
            transformers.logging.disable_progress_bar()
            made[key] = learner_fakes.tiny_model(tmp_path_factory.mktemp("model"), **options)  # type: ignore[arg-type]
        return made[key]

    return folder
