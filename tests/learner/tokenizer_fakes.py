"""Small tokenizers for tests, and two models with different ones."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import learner_fakes as fakes
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from agentrl.examples import Example, Text


def byte_level(merges: list[tuple[str, str]], *, eos: str = "<|end|>", bos: str | None = None, more: tuple[str, ...] = ()) -> Any:
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in (eos, *([bos] if bos else []), *more)])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)


OWN = byte_level([("h", "e"), ("l", "l"), ("he", "ll")], more=("<|user|>",))
OTHER = byte_level([("e", "l"), ("l", "o"), ("h", "el")], eos="</s>", bos="<s>")
TEXTS = [("say ", "hello hello"), ("", "oh well"), ("what is it", "a shell"), ("q", "h"), ("hell", "o, halo")]


def foreign_pair(folder: str) -> tuple[str, str]:
    """A student and a teacher of another vocabulary below a folder, made once, each with its tokenizer; their norms stay in float64."""
    places = []
    for seed, (name, tokenizer) in enumerate((("own", OWN), ("other", OTHER))):
        place = Path(folder) / name
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=folder) as draft:
                made = Path(draft) / "model"
                fakes.tiny_model(made, kind="starcoder2", seed=seed, vocab_size=len(tokenizer) + seed)
                tokenizer.save_pretrained(made)
                with contextlib.suppress(OSError):  # another rank was faster
                    made.rename(place)
        places.append(str(place))
    return places[0], places[1]


def foreign_examples(*, ends: bool = True) -> list[Example]:
    """Texts in the student's vocabulary, behind prompts with a special token that the teacher has not."""
    found = []
    for number, (prompt, completion) in enumerate(TEXTS):
        first = [OWN.convert_tokens_to_ids("<|user|>"), *OWN(prompt).input_ids]
        ids = [*first, *OWN(completion).input_ids, *([OWN.eos_token_id] if ends else [])]
        text = Text(ids=np.array(ids, dtype=np.int32), trained=np.arange(len(ids)) >= len(first), prompt_length=len(first))
        found.append(Example(where=f"row {number}", texts=(text,), rewards=(0.0,)))
    return found
