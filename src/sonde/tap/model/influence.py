"""Find an output's feature axis by changing the input at one position.

A change at one place of an axis of time or space reaches places near it alone, and features all
over. Where all has been mixed already (behind attention, behind a mean) this tells nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch, Model
from sonde.core.site import Site
from sonde.core.token_masks import REAL
from sonde.tap.model.vary import SizeChange, sized, token_ids
from sonde.tap.model.watch import watch

SAME = SizeChange("none")
N_ROWS = 2
ROUNDING = 1e-3
"""Largest difference between states that count as equal, as a part of the largest state."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
SIGNS = (1, -1)
FAR = 0.6
"""Share of the places of an axis that a change must reach to count as all over."""


@dataclass(frozen=True)
class Influence:
    """Runs a model on a batch's first rows with changed floating-point inputs.

    Parameters
    ----------
    model : Model
    batch : InputBatch
    """

    model: Model
    batch: InputBatch

    def features(self, site: Site, candidates: Sequence[int]) -> int | None:
        """Return the only axis along which every change spreads fully, or None.

        All other candidates must keep some change near its place.
        """
        near, far = set[int](), set(candidates)
        for changed in self._reached(site):
            for axis in candidates:
                others = [i for i in range(changed.ndim) if i != axis]
                share = float(changed.any(dim=others).float().mean())
                if share <= FAR:
                    far.discard(axis)
                    near |= {axis} if share > 0 else set()
        return far.pop() if len(far) == 1 and len(near) == len(candidates) - 1 else None

    def joins_rows(self, site: Site) -> bool:
        """Return whether a site's output has the states of all rows on one axis.

        False as well if the model gives two different rows the same states.
        """
        try:
            args, kwargs = self._two_rows()
            both = self._of(site, args, kwargs)
            alone = [self._of(site, *_row(i, args, kwargs)) for i in range(N_ROWS)]
        except Exception:  # whatever a model raises on inputs that are not its data
            return False
        return not _is_close(alone[0], alone[1]) and _is_close(torch.cat(alone), both)

    def _two_rows(self) -> Call:
        """Return the arguments of two different rows; the second may be the first reversed."""
        args, kwargs = sized(self.batch, SAME, N_ROWS, 0)
        ids = token_ids(replace(self.batch, args=args, kwargs=kwargs))
        if ids is None or not torch.equal(ids[0], ids[1]):
            return args, kwargs
        other = torch.stack([ids[0], ids[0].flip(0)])
        args = tuple(other if x is ids else x for x in args)
        return args, {name: other if x is ids else x for name, x in kwargs.items()}

    def fills_up(self, site: Site, axes: Sequence[int], change: SizeChange) -> bool:
        """Return whether a model pads its texts to the size of one axis.

        Given texts that are padded to this size, it has the same states at the site.

        Parameters
        ----------
        site : Site
        axes : sequence of int
            That hold neither rows nor features.
        change : SizeChange
            With the length of the texts that are tried.
        """
        pad = getattr(self.model.config, "pad_token_id", None)
        if len(axes) != 1 or change.pos is None or not isinstance(pad, int):
            return False
        try:
            args, kwargs = sized(self.batch, change, N_ROWS, 0)
            tensor = self._of(site, args, kwargs)
            more = tensor.shape[axes[0]] - change.pos[0]
            if more <= 0:
                return False
            args, kwargs = _filled(args, kwargs, change.pos[0], more, pad)
            return _is_close(self._of(site, args, kwargs), tensor)
        except Exception:  # whatever a model raises on inputs that are not its data
            return False

    def _reached(self, site: Site) -> Iterator[Tensor]:
        """Yield for each change at one input position a mask of the changed values.

        Each change goes far up and far down, because a rectifier may stop one direction.
        """
        try:
            before = self._at(site, None)
            for name, axis in list(self._changes()):
                after = [self._at(site, (name, axis, sign)) for sign in SIGNS]
                if all(x.shape == before.shape for x in after):
                    least = 1e-6 * before.abs().amax()
                    yield torch.stack([(x - before).abs() > least for x in after]).any(0)
        except Exception:  # whatever a model raises on inputs that are not its data
            return

    def _changes(self) -> Iterator[tuple[int | str, int]]:
        """Yield each argument and axis of floating-point numbers with several positions."""
        args, kwargs = sized(self.batch, SAME, N_ROWS, 0)
        for name, x in (*enumerate(args), *kwargs.items()):
            if isinstance(x, Tensor) and x.is_floating_point():
                yield from ((name, axis) for axis in range(1, x.ndim) if x.shape[axis] > 2)

    def _at(self, site: Site, change: tuple[int | str, int, int] | None) -> Tensor:
        args, kwargs = sized(self.batch, SAME, N_ROWS, 0)
        if change is not None:
            name, axis, sign = change
            by_name = dict(enumerate(args)) | kwargs
            by_name[name] = _changed(by_name[name], axis, sign)
            args = tuple(by_name[i] for i in range(len(args)))
            kwargs = {key: by_name[key] for key in kwargs}
        return self._of(site, args, kwargs)

    def _of(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        batch = replace(self.batch, args=args, kwargs=kwargs)
        return watch(self.model.module, batch, [site]).tensors[str(site)].double()


def _row(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the arguments of one of the rows."""

    def one(x: Any) -> Any:
        return x[i : i + 1] if isinstance(x, Tensor) and x.ndim and len(x) == N_ROWS else x

    return tuple(map(one, args)), {name: one(x) for name, x in kwargs.items()}


def _filled(
    args: tuple[Any, ...], kwargs: dict[str, Any], length: int, more: int, pad: int
) -> Call:
    """Return the arguments with padding after the texts, and a mask of it."""

    def fill(name: str, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.is_floating_point() or x.shape[1:] != (length,):
            return x
        value = pad if name == "input_ids" else 0
        return torch.cat([x, x.new_full((len(x), more), value)], dim=1)

    real = torch.ones(N_ROWS, length, dtype=torch.int64)
    given = {REAL: real, **kwargs}
    first, *rest = args or (None,)
    new = (fill("input_ids", first), *(fill("", x) for x in rest)) if args else ()
    return new, {name: fill(name, x) for name, x in given.items()}


def _is_close(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding."""
    return x.shape == y.shape and bool(((x - y).abs() <= ROUNDING * y.abs().amax()).all())


def _changed(x: Tensor, axis: int, sign: int) -> Tensor:
    """Return a copy whose values in the middle of an axis move by more than the largest value."""
    x, generator = x.clone(), torch.Generator().manual_seed(0)
    place = x.select(axis, x.shape[axis] // 2)
    noise = torch.randn(place.shape, generator=generator).to(place)
    place.add_(sign * noise.sign() * (1 + noise.abs()) * (1 + x.abs().amax()))
    return x
