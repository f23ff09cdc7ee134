"""Arguments of hooks at attention ports: all heads, each head, and statistics of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import SiteError

ALL = ""


class PortView(Mapping[str, Tensor]):
    """Tensors of one port by key, computed on access.

    The key ``""`` holds all heads side by side, (example, position, heads x width), ``"3"`` the
    fourth of them, and names such as ``"entropy"`` a figure of each head, (example, position,
    heads).

    Parameters
    ----------
    x : Float[Tensor, "example pos head width"]
    figures : mapping of str to callable
        Make the figures.
    lengths : sequence of int or None
        Real positions of each example where hooks are given nested tensors.
    of_encoder : bool, default=False
        Whether the positions are those of an encoder's text, in a decoder that looks at it.
    in_sight : Bool[Tensor, "_example _head query key"] or None, default=None
        Of probabilities, which keys each query may see; None for all.
    """

    def __init__(
        self,
        x: Tensor,
        figures: Mapping[str, Callable[[], Tensor]],
        lengths: Sequence[int] | None = None,
        *,
        of_encoder: bool = False,
        in_sight: Tensor | None = None,
    ) -> None:
        self.x, self._figures, self._lengths = x, figures, lengths
        self.of_encoder, self.in_sight = of_encoder, in_sight
        self.made: dict[str, Tensor] = {}

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.made:
            self.made[key] = nested(self._make(key), self._lengths)
        return self.made[key]

    def __iter__(self) -> Iterator[str]:
        yield ALL
        yield from map(str, range(self.x.shape[2]))
        yield from self._figures

    def __len__(self) -> int:
        return 1 + self.x.shape[2] + len(self._figures)

    def _make(self, key: str) -> Tensor:
        if key == ALL:
            return self.x.flatten(2)
        if key in self._figures:
            return self._figures[key]()
        if not key.isdigit() or int(key) >= self.x.shape[2]:
            raise KeyError(key)
        return self.x[:, :, int(key)]

    def with_changes(self, new: Any) -> Tensor:
        """Return the heads after a hook's changes.

        Raises
        ------
        SiteError
            If the hook changed a figure: heads cannot be computed from a figure.
        """
        x, changed = self.x, dict[int, Tensor]()
        for key, leaf in new.items():
            if leaf is self.made.get(key):
                continue
            dense = leaf.to_padded_tensor(0.0, self._shape_of(key)) if leaf.is_nested else leaf
            if key == ALL:
                x = dense.unflatten(2, x.shape[2:])
            elif key.isdigit():
                changed[int(key)] = dense
            else:
                raise SiteError(
                    f"Site: {key!r} is a statistic of the heads: it can be read, but not "
                    "changed, and it has no gradient. Edit the port without a key, or one "
                    "head."
                )
        if not changed:
            return x
        return torch.stack([changed.get(i, x[:, :, i]) for i in range(x.shape[2])], 2)

    def _shape_of(self, key: str) -> tuple[int, ...]:
        return tuple(self._make(key).shape)


def nested(x: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """Return a padded tensor as a nested tensor of these lengths, or unchanged without lengths."""
    if lengths is None:
        return x
    return torch.nested.as_nested_tensor([row[:n] for row, n in zip(x, lengths, strict=True)])
