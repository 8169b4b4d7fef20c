"""The engine's own copy of the model's weights, by the names of the model's `state_dict`.

A weight may lie in a fused matrix in another order; it is written and read back by the same view, so that a checksum covers the very
memory that samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from agentrl.checksum import Checksum, converted
from agentrl.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Where a weight lies."""

    view: torch.Tensor
    """A view into the storage that the decoder computes with."""
    shape: tuple[int, ...]
    """Of the weight in the `state_dict`."""
    factored: tuple[int, ...] | None = None
    """The shape with dimensions split; permuted by `order` it is the view's. None: the view has the weight's own shape."""
    order: tuple[int, ...] = ()

    def write(self, tensor: torch.Tensor) -> None:
        """Overwrite the weight; converts the type."""
        if self.factored is not None:
            tensor = tensor.reshape(self.factored).permute(self.order)
        self.view.copy_(tensor)

    def read(self) -> torch.Tensor:
        """The weight as the `state_dict` has it."""
        if self.factored is None:
            return self.view
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return self.view.permute(inverse).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All weights of a decoder."""

    bindings: dict[str, Binding]
    dtype: torch.dtype
    refresh: Callable[[], None] = field(default=lambda: None)
    """Called after weights changed, to compute what follows from them."""

    @property
    def nbytes(self) -> int:
        """Bytes in the engine's type, tied weights counted by each name."""
        return sum(torch.Size(binding.shape).numel() for binding in self.bindings.values()) * self.dtype.itemsize

    def missing(self, names: Iterable[str]) -> list[str]:
        """Names whose memory none of `names` covers: a tied weight is covered by either of its names."""
        covered = {self.bindings[name].view.data_ptr() for name in names}
        return [name for name, binding in self.bindings.items() if binding.view.data_ptr() not in covered]

    def load(self, path: str, *, partial: bool) -> str:
        """Load a safetensors file and return the checksum of what the memory then holds.

        Raises `PublishError` before anything changed where a name or a shape is not the model's, or a weight is missing and not `partial`.
        """
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                self._check(names, {name: tuple(file.get_slice(name).get_shape()) for name in names}, partial=partial)
                for name in names:
                    self.bindings[name].write(file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise PublishError(f"cannot read the weights in {path}: {error}") from error
        self.refresh()
        checksum = Checksum()
        for name in names:
            checksum.add(name, converted(self.bindings[name].read(), self.dtype))
        return checksum.hexdigest()

    def _check(self, names: list[str], shapes: dict[str, tuple[int, ...]], *, partial: bool) -> None:
        unknown = sorted(set(names) - set(self.bindings))
        if unknown:
            raise PublishError(
                f"the engine's model has no weight {_some(unknown)}; names must be those of its own state_dict "
                f"(an adapter is merged first, and wrappers' prefixes are taken off), such as {_some(sorted(self.bindings))}"
            )
        for name, shape in shapes.items():
            if shape != self.bindings[name].shape:
                raise PublishError(f"weight {name!r} was sent with shape {list(shape)}; the engine's has {list(self.bindings[name].shape)}")
        missing = [] if partial else self.missing(names)
        if missing:
            raise PublishError(
                f"weight {_some(missing)} was not sent; send every weight, or publish with partial=True where the others never change"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
