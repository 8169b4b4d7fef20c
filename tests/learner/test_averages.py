from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file

from agentrl.config_learner import EmaConfig
from agentrl.errors import CheckpointError
from agentrl.learner.averages import AVERAGE, Averages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS: list[dict[str, Any]] = [{"kind": "ema", "decay": 0.9}, {"kind": "bema", "every": 2}]


class Walk:
    """A model whose one weight is set from outside, as the policy that an average is taken of."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.move(0.0)

    @torch.no_grad()
    def move(self, value: float) -> None:
        self.model.weight.fill_(value)


def averaged(walk: Walk, values: list[float], **options: Any) -> list[float]:
    """The average after each step of a walk from 0."""
    averages = Averages(EmaConfig(**options), walk)  # type: ignore[arg-type]
    found = []
    for step, value in enumerate(values, start=1):
        walk.move(value)
        averages.update(step)
        found.append(averages.values[AVERAGE]["weight"].item())
    return found


def learner_of(folder: str, ema: dict[str, Any] | None, objective: Any = "grpo", **learner: Any) -> Learner:
    return fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.01, "ema": ema} | learner), objective)


def test_ema_by_hand() -> None:
    """From 0: 0.1 x 1 = 0.1, then 0.9 x 0.1 + 0.1 x 2 = 0.29."""
    assert averaged(Walk(), [1.0, 2.0], decay=0.9) == pytest.approx([0.1, 0.29])


def test_ema_every_other_step_and_after_a_while() -> None:
    """Until step 2 the average is the weights; then it takes in those of steps 4 and 6 alone."""
    found = averaged(Walk(), [1.0, 2.0, 9.0, 4.0, 9.0, 3.0], decay=0.5, every=2, after=2)
    assert found == pytest.approx([1.0, 2.0, 2.0, 3.0, 3.0, 3.0])


def test_bema_by_hand() -> None:
    """Lag 3, multiplier 1, from 0. Step 1: b = 4^-0.5 = 1/2, mean = 1/2 x 2 = 1, a = 4^-1 = 1/4, average = 1 + 2/4."""
    options = {"kind": "bema", "every": 1, "lag": 3, "bias_power": 1.0}
    mean = (1 - 5**-0.5) * 1.0 + 5**-0.5 * 4.0
    assert averaged(Walk(), [2.0, 4.0], **options) == pytest.approx([1.5, mean + 4.0 / 5])


@pytest.mark.trl
@pytest.mark.parametrize(
    "options",
    [
        {"every": 1},
        {"every": 3, "ema_power": 0.7, "bias_power": 0.4, "lag": 2},
        {"every": 2, "after": 4, "multiplier": 0.5},
        {"every": 1, "ema_power": 2.0, "min_ema_multiplier": 0.3},
        {"every": 1, "ema_power": 0.0},
    ],
    ids=str,
)
def test_bema_is_that_of_trl_on_the_same_weights(options: dict[str, Any], model_folder: Callable[..., str]) -> None:
    """From the first update on: before it TRL shows the very first weights and we those of the step."""
    trl = pytest.importorskip("trl")
    named = {"every": "update_freq", "after": "update_after"}
    callback = trl.BEMACallback(**{named.get(key, key): value for key, value in options.items()})
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(kind="qwen3", tie_word_embeddings=True))
    averages = Averages(EmaConfig(kind="bema", **options), SimpleNamespace(model=model))  # type: ignore[arg-type]
    callback.on_train_begin(None, None, None, model)
    draw = torch.Generator().manual_seed(0)
    first = options.get("after", 0) + options["every"]
    for step in range(1, 12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.02)
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model)
        averages.update(step)
        if step >= first:
            theirs = dict(callback.running_model.named_parameters())
            for name, value in averages.values[AVERAGE].items():
                torch.testing.assert_close(value, theirs[name].detach(), rtol=0, atol=1e-6)


def test_an_average_is_kept_in_float32_beside_half_weights() -> None:
    """A thousandth of a step would be lost in bfloat16."""
    walk = Walk(torch.bfloat16)
    found = averaged(walk, [1.0] * 10, decay=0.9999)
    assert found == sorted(set(found))
    assert found[-1] == pytest.approx(1 - 0.9999**10, rel=1e-4)


@pytest.mark.parametrize("ema", KINDS, ids=lambda ema: ema["kind"])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "variant": "dora"}], ids=["whole", "dora"])
def test_a_resumed_average_goes_on_bit_for_bit(
    ema: dict[str, Any], lora: dict[str, Any] | None, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    learner, resumed = (learner_of(folder, ema, lora=lora) for _ in range(2))
    for seed in range(3):
        learner.update(fakes.make_groups(seed))
    learner.save(tmp_path)
    resumed.load(tmp_path)
    for seed in range(3, 6):
        for one in (learner, resumed):
            one.update(fakes.make_groups(seed))
    assert learner.averages is not None
    assert resumed.averages is not None
    for kind, values in learner.averages.values.items():
        assert all(torch.equal(value, resumed.averages.values[kind][name]) for name, value in values.items())
        assert all(value.dtype == torch.float32 for value in values.values())
    average = learner.averages.values[AVERAGE]
    assert any(not torch.equal(one, average[name]) for name, one in learner.policy.model.named_parameters() if name in average)


@pytest.mark.parametrize(("before", "after"), [(None, {}), ({}, None), ({}, {"kind": "bema"})], ids=str)
def test_a_checkpoint_of_another_average_is_refused(
    before: dict[str, Any] | None, after: dict[str, Any] | None, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    learner_of(model_folder(), before).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"averages\.safetensors.*learner\.ema"):
        learner_of(model_folder(), after).load(tmp_path)


def test_the_average_is_exported_beside_the_model_or_in_its_place(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    for name, ema in (("beside", {"decay": 0.5}), ("instead", {"decay": 0.5, "export": True})):
        learner = learner_of(folder, ema)
        for seed in range(2):
            learner.update(fakes.make_groups(seed))
        before = learner.fingerprint()
        learner.export(tmp_path / name, None)
        assert learner.fingerprint() == before
        average = learner.averages.values[AVERAGE]  # type: ignore[union-attr]
    last, beside, instead = (load_file(tmp_path / path / "model.safetensors") for path in ("beside", "beside/ema", "instead"))
    assert all(torch.equal(value, beside[name]) and torch.equal(value, instead[name]) for name, value in average.items())
    assert any(not torch.equal(last[name], value) for name, value in average.items())
    assert not (tmp_path / "instead" / "ema").exists()


def test_the_average_of_an_adapter_is_exported_merged_and_alone(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = learner_of(model_folder(kind="qwen3"), {"decay": 0.5}, lora={"rank": 2})
    for seed in range(2):
        learner.update(fakes.make_groups(seed))
    learner.export(tmp_path, None)
    saved = load_file(tmp_path / "ema" / "adapter" / "adapter_model.safetensors")
    average = learner.averages.values[AVERAGE]  # type: ignore[union-attr]
    assert {name.replace(".default.", ".") for name in average} == set(saved)
    assert all(torch.equal(value, saved[name.replace(".default.", ".")]) for name, value in average.items())
    merged, plain = (load_file(tmp_path / part / "model.safetensors") for part in ("ema", "."))
    assert any(not torch.equal(merged[name], plain[name]) for name in plain)


def test_evaluated_weights_are_the_average_only_where_the_run_file_says_so(model_folder: Callable[..., str]) -> None:
    ids = list(range(3, 12))
    found = []
    for evaluate in (False, True):
        learner = learner_of(model_folder(kind="qwen3"), {"decay": 0.9, "evaluate": evaluate})
        learner.update(fakes.make_groups(0))
        now, mark = learner.logprobs_of(ids), learner.fingerprint()
        with learner.evaluated_weights():
            found.append(learner.logprobs_of(ids) != now)
        assert learner.logprobs_of(ids) == now
        assert learner.fingerprint() == mark
    assert found == [False, True]


def test_a_warm_start_begins_the_average_anew(model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(kind="qwen3"), {"decay": 0.9})
    learner.warm(fakes.make_groups(0), None, rate=0.01, number=0)
    average = learner.averages.values[AVERAGE]  # type: ignore[union-attr]
    assert all(torch.equal(one, average[name]) for name, one in learner.policy.model.named_parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "bema", "decay": 0.5}, "only `kind: ema` reads decay, and kind is bema"),
        ({"lag": 3, "ema_power": 1.0}, "only `kind: bema` reads ema_power, lag, and kind is ema"),
        ({"decay": 1.0}, "less than 1"),
        ({"every": 0}, "greater than or equal to 1"),
    ],
    ids=str,
)
def test_options_of_the_other_kind_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EmaConfig(**options)
