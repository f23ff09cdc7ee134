"""Which axis of an output holds features, by changing the input at one place and looking where.

A change at one place of an axis of time or space reaches places near it alone, and features all
over. Where all has been mixed already (behind attention, behind a mean) this tells nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch, Model
from sonde.core.site import Site
from sonde.tap.model.vary import SizeChange, sized
from sonde.tap.model.watch import watch

SAME = SizeChange("none")
N_ROWS = 2
SIGNS = (1, -1)
FAR = 0.6
"""Share of the places of an axis that a change must reach to count as all over."""


@dataclass(frozen=True)
class Influence:
    """Runs a model on one batch's first rows with its floating-point inputs changed.

    Parameters
    ----------
    model : Model
    batch : InputBatch
    """

    model: Model
    batch: InputBatch

    def features(self, site: Site, candidates: Sequence[int]) -> int | None:
        """Return the only axis along which every change spreads everywhere; None if there is none.

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

    def _reached(self, site: Site) -> Iterator[Tensor]:
        """Yield for each change, at one place of an input axis, a mask of the values it reaches.

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
        """Yield each argument and axis of floating-point numbers with several places."""
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
        batch = replace(self.batch, args=args, kwargs=kwargs)
        return watch(self.model.module, batch, [site]).tensors[str(site)].double()


def _changed(x: Tensor, axis: int, sign: int) -> Tensor:
    """Return a copy; values in the middle of an axis are moved by more than the largest value."""
    x, generator = x.clone(), torch.Generator().manual_seed(0)
    place = x.select(axis, x.shape[axis] // 2)
    noise = torch.randn(place.shape, generator=generator).to(place)
    place.add_(sign * noise.sign() * (1 + noise.abs()) * (1 + x.abs().amax()))
    return x
