"""Models whose head judges text: one score a text, or two logits at the end of each of its steps.

They are transformers' own sequence and token classifiers, read from a causal language model (the head is then new, drawn from the run's
seed) or from an earlier classifier, and saved as such: `AutoModelForSequenceClassification` or `AutoModelForTokenClassification` loads what
was trained and gives the same scores. The head is one linear layer on the decoder's hidden states; no dropout is applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from agentrl.errors import ConfigError
from agentrl.learner.attention import ATTENTION
from agentrl.learner.packing import pack
from agentrl.learner.samples import Sample

if TYPE_CHECKING:
    from agentrl.learner.model import Policy, Scores

Judgement = Literal["score", "labels"]

MAX_PACKED_DIFFERENCE = 1e-3
"""Share of the largest output by which a packed row's may differ from its own alone, in float32."""

HEADS = ("score", "classifier")
"""What transformers calls a classifier's last layer."""

KINDS: dict[Judgement, tuple[Any, str, dict[int, str]]] = {
    "score": (AutoModelForSequenceClassification, "ForSequenceClassification", {0: "reward"}),
    "labels": (AutoModelForTokenClassification, "ForTokenClassification", {0: "wrong", 1: "right"}),
}
"""For each judgement the class that reads it, what names of architectures end with, and its labels."""


def read_scorer(folder: str, output: Judgement, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A classifier from a folder or Hub name that holds one already, or a causal language model whose head is replaced.

    Args:
        folder: what `from_pretrained` takes.
        output: `score` gives one number a text, `labels` two logits a token.
        dtype: of the parameters.
        seed: from which a new head is drawn, normal with the deviation that the model's own weights were drawn with.

    Raises `ConfigError` for a model that does not load so, or a classifier with another number of labels.
    """
    kind, ending, labels = KINDS[output]
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {folder!r} has no configuration that transformers reads: {error}") from error
    architectures = list(config.architectures or ())
    other = [name for name in architectures for _, end, _ in KINDS.values() if name.endswith(end) and end != ending]
    if other:
        raise ConfigError(
            f"model {folder!r} is a {other[0]}, and this objective trains a ...{ending}: start from a causal language model, or from one "
            "of those"
        )
    if any(name.endswith(ending) for name in architectures):
        if config.num_labels != len(labels):
            raise ConfigError(
                f"model {folder!r} is a classifier with {config.num_labels} labels, and this objective trains one with {len(labels)}: "
                "start from a causal language model, or from a classifier of that many labels"
            )
    else:
        config.id2label, config.label2id = labels, {name: place for place, name in labels.items()}  # their number is that of labels
    _name_padding(config)
    config.tokenized_by = "agentrl"  # so that whoever serves it asks with the tokens that it is trained on
    model, missing = _loaded(kind, folder, config, dtype)
    head = score_layer(model)
    own = {f"{name}.{part}" for name in HEADS for part, _ in head.named_parameters()}
    if missing - own:
        some = ", ".join(sorted(missing - own)[:3])
        raise ConfigError(f"model {folder!r} has no {some}: it does not hold all weights of a {type(model).__name__}")
    if missing:
        _draw(head, float(getattr(config.get_text_config(), "initializer_range", 0.02)), seed)
    return model


def _name_padding(config: Any) -> None:
    """A classifier reads the last token that is no padding, so that it needs to know one: where none is named, the end of a text."""
    text = config.get_text_config()
    if text.pad_token_id is None and text.eos_token_id is not None:
        ends = text.eos_token_id
        text.pad_token_id = ends[0] if isinstance(ends, list) else ends


def _loaded(kind: Any, folder: str, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, set[str]]:
    verbosity, shows_bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()  # the terminal is the run's
    transformers.logging.set_verbosity_error()  # that a head is new is no news
    options = {"config": config, "dtype": dtype, "attn_implementation": ATTENTION, "output_loading_info": True}
    try:
        with torch.random.fork_rng(devices=[]):  # transformers draws a head too
            model, loading = kind.from_pretrained(folder, **options)
    except Exception as error:  # somebody else's files: each format has its own errors, and all of them mean this
        raise ConfigError(f"model {folder!r} does not load as a classifier ({kind.__name__}): {type(error).__name__}: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if shows_bars:
            transformers.logging.enable_progress_bar()
    return cast("PreTrainedModel", model), set(loading["missing_keys"])


@torch.no_grad()
def _draw(head: torch.nn.Linear, deviation: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    head.weight.copy_(torch.randn(head.weight.shape, generator=draw, dtype=torch.float64) * deviation)
    if head.bias is not None:
        head.bias.zero_()


def score_layer(model: PreTrainedModel) -> Any:
    """The layer that makes outputs of hidden states; raises `ConfigError` where a classifier has another than a linear one."""
    for name in HEADS:
        layer: Any = getattr(model, name, None)
        inner = getattr(layer, "original_module", layer)  # peft's wrapper of a layer that is trained whole
        if isinstance(inner, torch.nn.Linear):
            return layer
    raise ConfigError(f"{type(model).__name__} has no linear layer named {' or '.join(HEADS)}: its head cannot be trained here")


def score_layer_name(model: PreTrainedModel) -> str:
    """Its name in the model."""
    layer = score_layer(model)
    return next(name for name in HEADS if getattr(model, name, None) is layer)


def padding_token(model: PreTrainedModel) -> int | None:
    """The token that transformers' sequence classifiers pass over when they look for a text's last one."""
    token: int | None = model.config.get_text_config().pad_token_id
    return token


def scores_of(model: PreTrainedModel, hidden: torch.Tensor) -> Scores:
    """What a classifier says of hidden states [positions, size]: outputs, and no log-probs."""
    from agentrl.learner.model import Scores

    layer = score_layer(model)
    outputs: torch.Tensor = layer(hidden.to(next(layer.parameters()).dtype))
    nothing = torch.full((len(hidden),), torch.nan, dtype=outputs.dtype, device=outputs.device)
    return Scores(logprobs=nothing, entropy=nothing, outputs=outputs)


@torch.no_grad()
def check_scorer(policy: Policy) -> None:
    """Compare a pack of tiny rows with transformers' own forward pass over each row alone; raises `ConfigError` where they differ."""
    base = policy.base
    device = next(base.parameters()).device
    words = np.array([word for word in range(base.config.get_text_config().vocab_size) if word != padding_token(base)], dtype=np.int32)
    draw = np.random.default_rng(0).choice(words, size=(4, 9))
    rows = [draw[0, :9], np.concatenate([draw[0, :4], draw[2, :3]]), draw[1, :6], draw[3, :9]]
    samples = [_last_token(row, group) for row, group in zip(rows, (0, 0, 1, 2), strict=True)]
    half, policy.dtype = policy.dtype, base.dtype
    packed = policy(pack(samples, device)).outputs
    policy.dtype = half
    alone = torch.cat([_alone(base, row, device) for row in rows])
    difference = float((packed - alone).abs().max() / alone.abs().max())
    if not difference <= MAX_PACKED_DIFFERENCE:
        raise ConfigError(
            f"{type(base).__name__} judges rows in a pack differently from the same rows alone, by a share of {difference:.3g}: a layer of "
            "it looks across the rows' boundaries, or its head is more than a linear layer; such a model cannot be trained here"
        )


def _last_token(row: np.ndarray, group: int) -> Sample:
    return Sample(
        group=group,
        rows=(row,),
        sources=(np.array([len(row) - 1]),),
        targets=row[-1:].astype(np.int64),
        sampler_logprobs=np.full(1, np.nan, dtype=np.float32),
        masked=False,
    )


def _alone(base: PreTrainedModel, row: np.ndarray, device: torch.device) -> torch.Tensor:
    """[1, labels] by the model's own forward pass and head, with transformers' plain attention."""
    base.set_attn_implementation("eager")
    try:
        logits: Any = base(input_ids=torch.from_numpy(row.astype(np.int64)).to(device)[None], use_cache=False).logits
    finally:
        base.set_attn_implementation(ATTENTION)
    outputs: torch.Tensor = logits if logits.ndim == 2 else logits[:, -1]
    return outputs
