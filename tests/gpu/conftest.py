"""What every test on a GPU runs under: without one, each is skipped and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import learner_fakes
import pytest
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True, scope="session")
def _on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def model_folder(_on_a_gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folders with tiny random models, made once for each set of options."""
    made: dict[str, str] = {}

    def folder(**options: object) -> str:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = learner_fakes.tiny_model(tmp_path_factory.mktemp("model"), **options)  # type: ignore[arg-type]
        return made[key]

    return folder
