"""Mean log-probs over the vocabulary, without logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dataset_rows as rows
import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers
from test_scorer import gradient, padded

from agentrl.errors import ConfigError
from agentrl.learner.logprobs import Head
from agentrl.learner.projection import Projection
from agentrl.learner.smoothing import uniform_logprobs

if TYPE_CHECKING:
    from collections.abc import Callable

SFT = {"name": "sft", "label_smoothing": 0.2}


@pytest.mark.parametrize("bias", [False, True])
def test_means_and_gradients_are_those_of_all_logits(*, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight, offset = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((6, 4), (11, 4), (11,)))
    leaves = [one.requires_grad_() for one in (hidden, weight, *([offset] if bias else []))]
    targets = torch.tensor([0, 3, 10, 3, 5, 1])
    logits = (hidden @ weight.t() + (offset if bias else 0.0)) * 0.5 / 1.3
    dense = logits.log_softmax(-1)
    own = Projection(hidden=hidden, weight=weight, bias=offset if bias else None, head=Head(temperature=1.3, scale=0.5))
    found = uniform_logprobs(own, targets, dense.gather(1, targets[:, None])[:, 0])
    assert torch.allclose(found, dense.mean(-1), rtol=0, atol=1e-12)
    direction = torch.randn(6, generator=draw, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((found * direction).sum(), leaves, retain_graph=True),
        torch.autograd.grad((dense.mean(-1) * direction).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_loss_and_gradient_are_those_of_transformers_label_smoother(model_folder: Callable[..., str]) -> None:
    folder, examples = model_folder(kind="starcoder2"), rows.make_examples("supervised")
    learner = fakes.make_learner(folder, fakes.run_config(), SFT, master_dtype=torch.float64)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    texts = [example.texts[0] for example in examples]
    ids = padded([text.ids for text in texts], 0)
    labels = padded([np.where(text.trained, text.ids, -100) for text in texts], -100)
    smoother = transformers.trainer_pt_utils.LabelSmoother(epsilon=0.2)
    loss = smoother(model(input_ids=ids, attention_mask=(ids != 0).long()), labels, shift_labels=True)
    loss.backward()
    mine = {name.removeprefix("model."): one for name, one in gradient(learner, examples).items()}
    theirs = dict(model.named_parameters())
    assert fakes.distance(mine, {name: theirs[name].grad for name in mine}) < 1e-7  # it sums over the vocabulary in float32
    assert learner.evaluate_examples(examples)["loss"] == pytest.approx(float(loss.detach()), rel=1e-7)


def test_a_capped_head_is_refused(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="gemma2", attn_logit_softcapping=None, final_logit_softcapping=30.0)
    with pytest.raises(ConfigError, match=r"objective\.label_smoothing needs logits that are linear .* caps them at 30: set it to 0"):
        fakes.make_learner(folder, fakes.run_config(), SFT)
