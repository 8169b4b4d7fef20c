"""Loading a tokenizer, and the two functions of it that episodes use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase


def codec(tokenizer: PreTrainedTokenizerBase) -> tuple[Callable[[str, bool], list[int]], Callable[[list[int]], str]]:
    """`(text, add special tokens) -> ids` and `ids -> text`, both usable from several threads at once."""
    backend: Any = getattr(tokenizer, "_tokenizer", None)
    if not tokenizer.is_fast or backend is None:
        return (
            lambda text, special: list(tokenizer.encode(text, add_special_tokens=special)),
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)),
        )
    # the wrapper sets truncation at every call, which fails while another thread encodes; set once, the backend never changes
    backend.no_truncation()
    backend.no_padding()
    return (
        lambda text, special: list(backend.encode(text, add_special_tokens=special).ids),
        lambda ids: str(backend.decode(ids, skip_special_tokens=False)),
    )


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name. Raises `ConfigError` where there is none, or it does not load."""
    try:
        return _read_tokenizer(model)
    except ConfigError:
        raise
    except Exception as error:  # somebody else's files: each kind of tokenizer has its own errors
        place = "" if Path(model).is_dir() else " (there is no such folder here, so it was looked for on the Hugging Face Hub)"
        said = f"model {model!r}{place} has no tokenizer that loads: {type(error).__name__}: {error}"
        raise ConfigError(f"{said}; save one beside it with tokenizer.save_pretrained") from error


def _read_tokenizer(model: str) -> PreTrainedTokenizerBase:
    config = _json_of(Path(model) / "tokenizer_config.json")
    if config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend") and (Path(model) / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast  # without torch, which AutoTokenizer imports

        plain: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(model)
        return plain
    from transformers import AutoTokenizer

    auto: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return auto


def generation_eos(model: str) -> list[int]:
    """The end tokens of a model's generation config, where it has one."""
    config = _json_of(Path(model) / "generation_config.json")
    if not Path(model).is_dir():
        from transformers import GenerationConfig

        try:
            config = GenerationConfig.from_pretrained(model).to_dict()
        except OSError:  # a model need not have one
            config = {}
    eos = config.get("eos_token_id")
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _json_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return content
