"""A reward model under torch: rows to tokens, batches by a budget of tokens, one score a row.

Rows are padded on the right whatever the tokenizer does, and each gets the score that transformers gives it alone.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from typing import TYPE_CHECKING, Any

from agentrl.data.tokens import Draft, TokenWriter
from agentrl.errors import ConfigError
from agentrl.servers.reward_rows import RewardOptions, RewardRow, RowScore, aggregated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

UNLIMITED = 1 << 24
"""A tokenizer without a limit names one far beyond this."""


class RewardScorer:
    """A loaded model. One thread at a time scores; others wait.

    Args:
        options: which model. Raises `ConfigError` for one that is no reward model.
    """

    def __init__(self, options: RewardOptions) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.options = options
        config = _loaded(options, AutoConfig, "configuration")
        self.steps = _is_process(options, config)
        self._tokenizer: Any = _loaded(options, AutoTokenizer, "tokenizer")
        self._device = _device(options)
        self._model: Any = _load_model(options, steps=self.steps, dtype=_dtype(options, self._device)).to(self._device).eval()
        self._label = _label(options, config, steps=self.steps)
        self.max_length = _max_length(options, config, self._tokenizer)
        self._pad: int | None = config.get_text_config().pad_token_id
        self._special = _special_tokens(self._tokenizer)
        # A model that was trained here is asked with the tokens that it was trained on, the end of a text among them.
        self._writer = TokenWriter(self._tokenizer) if getattr(config, "tokenized_by", None) == "agentrl" else None
        self._lock = threading.Lock()

    def score(self, rows: Sequence[RewardRow]) -> list[RowScore]:
        """The scores in the order of the rows; a row that cannot be scored has the reason."""
        scores: list[RowScore | None] = [None] * len(rows)
        encoded: list[tuple[int, list[int], list[int]]] = []
        with self._lock:
            for index, row in enumerate(rows):
                try:
                    encoded.append((index, *self._encode(row)))
                except Exception as error:  # the boundary to the model's chat template, which raises what it likes
                    scores[index] = RowScore.failed(str(error) or type(error).__name__)
            for batch in self._batches(encoded):
                for (index, _, ends), logits in zip(batch, self._forward(batch), strict=True):
                    scores[index] = self._read(logits, ends) if not isinstance(logits, str) else RowScore.failed(logits)
        return [score or RowScore.failed("the row was lost") for score in scores]

    def _encode(self, row: RewardRow) -> tuple[list[int], list[int]]:
        """Token ids, and the places at which steps end (none for a model of outcomes). Raises `ValueError` for what cannot be scored."""
        ids, ends = self._encode_steps(row) if self.steps else (self._encode_outcome(row), [])
        if not ids:
            raise ValueError("the row is empty")
        if len(ids) > self.max_length:
            raise ValueError(f"the row has {len(ids)} tokens and the model takes {self.max_length}; nothing is cut off")
        return ids, ends

    def _encode_outcome(self, row: RewardRow) -> list[int]:
        if row.steps is not None:
            raise ValueError("this model scores whole answers: send completions, not steps")
        if isinstance(row.prompt, str) and isinstance(row.completion, str):
            if self._writer is not None and row.prompt + row.completion:
                (tokens,) = self._writer.tokens([Draft(text=_plain(row.prompt + row.completion), prompt=len(row.prompt))])
                return [int(token) for token in tokens.ids]
            return self._ids(row.prompt + row.completion, special=True)
        if isinstance(row.completion, str):
            raise ValueError("prompt and completion are both texts, or both messages")
        answer = [{**(said := _with_text(one)), "content": self._harmless(said["content"])} for one in row.completion]
        return self._ids(self._templated([*row.prompt, *answer]))

    def _encode_steps(self, row: RewardRow) -> tuple[list[int], list[int]]:
        steps = row.steps
        if steps is None:
            split = self.options.split
            steps = tuple(step for step in _answer(row.completion, split).split(split) if step.strip())
        steps = tuple(map(self._harmless, steps))
        if not steps:
            raise ValueError("the completion has no steps")
        inner = self._ids if self._writer is None else self._writer.inner_ids
        if isinstance(row.prompt, str):
            ids = self._ids(row.prompt, special=True) if self._writer is None else self._begun(_plain(row.prompt), self._writer)
        else:
            ids = self._ids(self._templated(row.prompt, add_generation_prompt=True))
        between = inner(self.options.separator)
        if not between:
            raise ValueError(f"the separator {self.options.separator!r} has no token")
        ends = []
        for step in steps:
            ids = [*ids, *inner(_plain(step)), *between]
            ends.append(len(ids) - 1)
        return ids, ends

    @staticmethod
    def _begun(prompt: str, writer: TokenWriter) -> list[int]:
        """Tokens of a prompt, with what the tokenizer puts before a text."""
        ids = writer.ids(prompt)
        return ids if ids[: len(writer.lead)] == list(writer.lead) else [*writer.lead, *ids]

    def _harmless(self, text: str) -> str:
        """Without special tokens, a zero-width space behind their first character: with one an answer could end its turn, and praise it."""
        return self._special.sub(lambda found: found[0][0] + "\u200b" + found[0][1:], text) if self._special else text

    def _templated(self, messages: Sequence[Any], **options: Any) -> str:
        if not self._tokenizer.chat_template:
            raise ValueError("the model has no chat template: send prompts and completions as texts")
        return str(self._tokenizer.apply_chat_template([_with_text(message) for message in messages], tokenize=False, **options))

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text; with those that the tokenizer puts around a text of its own accord where there is no template."""
        ids: list[int] = self._tokenizer(_plain(text), add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _batches(self, encoded: list[tuple[int, list[int], list[int]]]) -> Iterator[list[tuple[int, list[int], list[int]]]]:
        batch: list[tuple[int, list[int], list[int]]] = []
        alone = self._pad is None and not self.steps  # transformers finds a row's end by the padding token
        for row in sorted(encoded, key=lambda row: len(row[1])):
            if batch and (alone or (len(batch) + 1) * len(row[1]) > self.options.tokens_per_batch):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _forward(self, batch: list[tuple[int, list[int], list[int]]]) -> Sequence[torch.Tensor | str]:
        """Logits of each row, or why there are none."""
        import torch

        width = max(len(ids) for _, ids, _ in batch)
        padded = [ids + [self._pad or 0] * (width - len(ids)) for _, ids, _ in batch]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for _, ids, _ in batch]
        try:
            with torch.inference_mode():
                made = self._model(
                    input_ids=torch.tensor(padded, device=self._device), attention_mask=torch.tensor(mask, device=self._device)
                )
                logits: torch.Tensor = made.logits.float().cpu()
            return list(logits)
        except torch.OutOfMemoryError as error:
            logging.getLogger(__name__).warning("out of memory for %d rows of %d tokens: %s", len(batch), width, error)
            return [f"the device has no memory for {len(batch)} rows of {width} tokens; start with fewer tokens_per_batch"] * len(batch)

    def _read(self, logits: torch.Tensor, ends: list[int]) -> RowScore:
        if not self.steps:
            value = float(logits[self._label])
            return RowScore(value=value) if math.isfinite(value) else RowScore.failed(f"the model answered {value}")
        at = logits[ends]
        chances = at.softmax(-1)[:, self._label] if at.shape[-1] > 1 else at.sigmoid()[:, 0]
        steps = tuple(chances.tolist())
        if not all(map(math.isfinite, steps)):
            return RowScore.failed("the model answered nan")
        return RowScore(value=aggregated(steps, self.options.aggregate), steps=steps)


def _plain(text: str) -> str:
    """Without lone surrogates, a character for each."""
    return text.encode("utf-8", "replace").decode()


def _loaded(options: RewardOptions, kind: Any, what: str) -> Any:
    try:
        return kind.from_pretrained(options.model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"cannot load the {what} of the reward model {options.model!r}: {error}") from error


def _is_process(options: RewardOptions, config: Any) -> bool:
    if options.kind != "auto":
        return options.kind == "process"
    architectures = list(config.architectures or ())
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return False
    if any(name.endswith("ForTokenClassification") for name in architectures):
        return True
    raise ConfigError(
        f"{options.model!r} is a {', '.join(architectures) or 'model of no architecture'}; a reward model is a sequence classifier, or a "
        "token classifier that judges steps"
    )


def _load_model(options: RewardOptions, *, steps: bool, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kind: Any = AutoModelForTokenClassification if steps else AutoModelForSequenceClassification
    try:
        model, loading = kind.from_pretrained(options.model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(f"cannot load the reward model {options.model!r}: {error}") from error
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError(f"{options.model!r} has no {missing}: its scores would be random; give the folder of a trained reward model")
    return model


def _device(options: RewardOptions) -> torch.device:
    import torch

    found = torch.cuda.is_available()
    if options.device.startswith("cuda") and not found:
        raise ConfigError(f"device is {options.device}, and torch finds no CUDA device; set it to cpu or auto")
    return torch.device(options.device if options.device != "auto" else "cuda" if found else "cpu")


def _dtype(options: RewardOptions, device: torch.device) -> torch.dtype:
    import torch

    if options.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if options.dtype == "bfloat16" else torch.float32


def _label(options: RewardOptions, config: Any, *, steps: bool) -> int:
    count = int(config.num_labels)
    if options.label is None and not steps and count != 1:
        raise ConfigError(f"{options.model!r} has {count} labels, {config.id2label}: say whose logit is the reward, such as label=0")
    label = options.label if options.label is not None else min(1, count - 1)
    if not 0 <= label < count:
        raise ConfigError(f"label {label}: {options.model!r} has the labels 0 to {count - 1}")
    return label


def _max_length(options: RewardOptions, config: Any, tokenizer: Any) -> int:
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length, options.max_length]
    return min((int(limit) for limit in limits if limit is not None and 0 < limit < UNLIMITED), default=UNLIMITED)


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    known = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


def _answer(completion: str | list[dict[str, Any]], split: str) -> str:
    """Text of what was answered, of all its assistant messages; what tools said is not judged, and not shown."""
    if isinstance(completion, str):
        return completion
    return split.join(str(_with_text(message)["content"]) for message in completion if message["role"] == "assistant")


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a text for content, as templates of text models take it."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return {**message, "content": content or ""}
