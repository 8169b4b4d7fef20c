"""The models that a policy is distilled from: frozen, beside it, asked of every micro-batch.

A teacher's hidden states and head go into the policy's own forward pass, where the divergence is taken tile by tile: neither model's
logits are ever whole. Of several teachers a token's divergence is the weighted mean of theirs, or that of the one which its row names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.config import TeacherConfig
from agentrl.errors import ConfigError
from agentrl.learner import ranks
from agentrl.learner.foreign import ForeignTeacher
from agentrl.learner.lessons import Lesson, Lessons
from agentrl.learner.loading import load_policy
from agentrl.learner.model import output_layer
from agentrl.learner.packing import pack
from agentrl.learner.samples import FILLER, viewed
from agentrl.learner.self_teacher import Follower, own_teacher
from agentrl.learner.top_tokens import TopTokens, top_tokens
from agentrl.learner.transfer import on_device
from agentrl.teacher_prompt import top_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.config import RunConfig
    from agentrl.learner.model import Policy
    from agentrl.learner.packing import Pack
    from agentrl.learner.projection import Projection
    from agentrl.learner.samples import Sample
    from agentrl.objectives.needs import Teacher

MAX_PADDING = 1024
"""Words by which the heads of a policy and a teacher with one tokenizer may differ: heads are padded to multiples of up to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One teacher."""

    config: TeacherConfig
    policy: Policy | None
    """None where servers speak for it: what they said is in the samples' columns."""


class Teachers:
    """The teachers of a run."""

    def __init__(self, asked: Teacher, loaded: Sequence[Loaded], config: RunConfig, follower: Follower | None = None) -> None:
        self.asked = asked
        self.foreign: ForeignTeacher | None = None
        """How a teacher of another vocabulary is read."""
        self.follower = follower
        """A teacher that is a running mean of the policy."""
        self.loaded = tuple(loaded)
        self._names = [one.config.name for one in loaded]
        self._weights = np.array([one.config.weight for one in loaded], dtype=np.float64)
        self._temperature = config.sampling.temperature if asked.temperature is None else asked.temperature
        self._sharded = False

    @classmethod
    def load(cls, asked: Teacher, policy: Policy, config: RunConfig, folder: str, device: torch.device, master: torch.dtype) -> Teachers:
        """Load those that the run file names, or make the policy of a folder its own.

        Raises `ConfigError` for one whose vocabulary is not the policy's.
        """
        if asked.who != "others":
            return cls._of_itself(asked, policy, config, folder, device, master)
        loaded = []
        for one in config.teacher:
            model = None
            if one.model is not None and not one.servers:
                model = load_policy(config, one.model, device, master=master, trained=False)
                if asked.words is None:
                    _check_vocabulary(policy, model, one.model)
            loaded.append(Loaded(config=one, policy=model))
        teachers = cls(asked, loaded, config)
        if asked.words is not None:
            teachers.foreign = ForeignTeacher.load(asked.words, folder, str(loaded[0].config.model))
        return teachers

    @classmethod
    def _of_itself(
        cls, asked: Teacher, policy: Policy, config: RunConfig, folder: str, device: torch.device, master: torch.dtype
    ) -> Teachers:
        model = own_teacher(asked.who, policy, config, folder, device, master)
        follower = Follower(model, rate=asked.ema_rate, every=asked.ema_every) if asked.who == "ema" else None
        return cls(asked, [Loaded(config=TeacherConfig(model=folder), policy=model)], config, follower)

    def shard(self, accelerator: Accelerator) -> None:
        """Split the teachers' parameters over the ranks; those of the policy itself already are."""
        for one in self.loaded:
            if one.policy is not None and self.asked.who != "live":
                ranks.shard(one.policy, accelerator, dtype=one.policy.dtype)
        self._sharded = True

    def reshard(self) -> None:
        """Give up what forward passes left whole."""
        for one in self.loaded:
            if one.policy is not None:
                ranks.reshard(one.policy)

    @torch.no_grad()
    def logprobs(self, samples: Sequence[Sample], packed: Pack) -> torch.Tensor:
        """[trained] nats: the weighted mean of the teachers' log-probs of the trained tokens of a pack."""
        total: torch.Tensor | None = None
        for index in range(len(self.loaded)):
            found = self._ask(index, samples, packed).token_logprobs(packed.targets)
            part = found * self._token_weights(index, samples or [FILLER], found)
            total = part if total is None else total + part
        assert total is not None, "there is a teacher"
        return total

    @torch.no_grad()
    def lessons(self, samples: Sequence[Sample], packed: Pack, *, ragged: bool) -> Lessons | None:
        """What each teacher says of the trained tokens of a micro-batch; None where the objective takes no divergence.

        Args:
            samples: of the micro-batch, in the order in which it was packed; none where it only keeps a rank in step with the others.
            packed: all of them.
            ragged: the attention kernel takes segments of any lengths.
        """
        if self.asked.divergence is None:
            return None
        if self.foreign is not None:
            return self._foreign(self.foreign, samples, packed, ragged=ragged)
        found = []
        for index in range(len(self.loaded)):
            asked = [sample for sample in samples if self._share(index, sample) > 0]
            if self.loaded[index].policy is None:
                found += self._said(index, asked, samples, packed)
                continue
            if len(asked) == len(samples):
                teacher = self._ask(index, asked, packed, ragged=ragged)
                places = None
            elif asked or self._sharded:
                teacher = self._ask(index, asked, pack(asked or [FILLER], packed.ids.device, ragged=ragged), ragged=ragged)
                places = self._places(index, samples, packed)
            else:
                continue
            if places is None or len(places):
                weights = self._token_weights(index, asked or [FILLER], teacher.hidden)
                said = top_tokens(teacher, self.asked.top_k) if self.asked.top_k and self.asked.support == "teacher" else teacher
                found.append(Lesson(teacher=said, places=places, weights=weights))
        asked_of_student = self.asked.top_k if self.asked.support == "student" else None
        return Lessons(
            lessons=found, beta=self.asked.divergence, temperature=self._temperature, top_k=asked_of_student, tail=self.asked.tail
        )

    def _foreign(self, foreign: ForeignTeacher, samples: Sequence[Sample], packed: Pack, *, ragged: bool) -> Lessons:
        """What a teacher of another vocabulary says of a micro-batch, in its own words."""
        read = [viewed(sample) for sample in samples if sample.view is not None] or [FILLER]
        policy = self.loaded[0].policy
        assert policy is not None, "servers speak the policy's own words"
        said: Projection = policy(pack(read, packed.ids.device, ragged=ragged), project=True)
        weights = torch.ones(len(packed.targets), device=packed.ids.device, dtype=torch.promote_types(said.hidden.dtype, torch.float32))
        lesson = Lesson(teacher=foreign.lesson(samples, said, packed), places=None, weights=weights)
        return Lessons(lessons=[lesson], beta=0.0, temperature=self._temperature)

    def _said(self, index: int, asked: Sequence[Sample], samples: Sequence[Sample], packed: Pack) -> list[Lesson]:
        """What the servers of a teacher said of these samples before the step."""
        if not asked:
            return []
        ids, logprobs = top_names(self._names[index])
        device = packed.ids.device
        chances = np.concatenate([sample.columns[logprobs] for sample in asked])
        chances = np.nan_to_num(chances, nan=-np.inf, neginf=-np.inf)  # JSON, in which rollouts are kept, knows no infinity
        words = np.concatenate([sample.columns[ids] for sample in asked]).astype(np.int64)
        top = TopTokens(ids=on_device(words, device), logprobs=on_device(chances, device))
        places = None if len(asked) == len(samples) else self._places(index, samples, packed)
        return [Lesson(teacher=top, places=places, weights=self._token_weights(index, asked, top.logprobs))]

    def _ask(self, index: int, samples: Sequence[Sample], packed: Pack, *, ragged: bool = False) -> Projection:
        """A teacher's hidden states before the targets of a pack of these samples, and its head at the temperature that is in force."""
        one = self.loaded[index]
        assert one.policy is not None, "what servers say is known before"
        if any(sample.view is not None for sample in samples):
            packed = pack([viewed(sample) for sample in samples], packed.ids.device, ragged=ragged)
        said: Projection = one.policy(packed, project=True)
        own = one.config.temperature
        return replace(said, head=replace(said.head, temperature=self._temperature if own is None else own))

    def _share(self, index: int, sample: Sample) -> float:
        """A teacher's weight in the loss of a sample."""
        if sample.teacher is None or len(self.loaded) == 1:
            return float(self._weights[index] / self._weights.sum())
        return float(self._names[index] == sample.teacher)

    def _token_weights(self, index: int, samples: Sequence[Sample], like: torch.Tensor) -> torch.Tensor:
        """[trained] of these samples."""
        shares = [self._share(index, sample) for sample in samples]
        lengths = [sample.num_trained for sample in samples]
        kind = torch.promote_types(like.dtype, torch.float32)
        return on_device(np.repeat(shares, lengths), like.device).to(kind)

    def _places(self, index: int, samples: Sequence[Sample], packed: Pack) -> torch.Tensor:
        """[asked] int64: which trained tokens of the micro-batch a teacher is asked of."""
        own = np.repeat([self._share(index, sample) > 0 for sample in samples], [sample.num_trained for sample in samples])
        return on_device(np.flatnonzero(own), packed.ids.device)


def _check_vocabulary(policy: Policy, teacher: Policy, name: str) -> None:
    """Raise where the two heads cannot speak of the same words."""
    own, other = (len(output_layer(one.base).weight) for one in (policy, teacher))
    if abs(own - other) > MAX_PADDING:
        raise ConfigError(
            f"teacher {name!r} has a head of {other} words and the policy one of {own}: they do not have one tokenizer, and their "
            "distributions cannot be compared word by word; take a teacher of the policy's family, or `objective: gold`"
        )
