"""Inputs of batch norms, compared with the statistics stored in training."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.findings.trial import Misfit
from sonde.tap import LiveStream
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches

CHUNK = 16
MISFIT: Final = 0.125
"""Misfit of a mean that is off by half a standard deviation."""
LEFT: Final = 0.25
"""Fraction of a misfit that a change of the inputs or of a part may leave."""


@dataclass(frozen=True)
class NormFit:
    """A batch norm's running statistics, compared with those of its inputs.

    Parameters
    ----------
    path : str
    misfit : float
        Relative entropy in nats between Gaussians of these means and variances, median of channels.
    shift : float
        Distance of the means in running standard deviations, median of channels.
    ratio : float
        Variance over the running one, median of channels.
    unmoved : bool
        Whether the buffers are still those of a new module: mean 0 and variance 1.
    untrained : bool
        Whether weight and bias are still those of a new module: 1 and 0.
    """

    path: str
    misfit: float
    shift: float
    ratio: float
    unmoved: bool
    untrained: bool


def batch_norms(stream: LiveStream) -> list[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    """Return the batch norms with running statistics that ran, in order of execution."""
    norms = [
        (name, module)
        for name, module in stream.probe.names.modules.items()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and not module.training
        and stream.probe.calls(name) == 1
    ]
    return sorted(norms, key=lambda pair: stream.probe.order(pair[0], 0, "out"))


def in_chunks(small: SmallBatches, size: int = CHUNK) -> Iterator[InputBatch]:
    """Yield the examples in batches."""
    for start in range(0, len(small), size):
        yield small.together(range(start, min(start + size, len(small))))


def norm_fits(
    stream: LiveStream,
    small: SmallBatches,
    norms: Sequence[tuple[str, nn.modules.batchnorm._BatchNorm]],
) -> tuple[NormFit, ...]:
    """Run the examples and compare each norm's running statistics with its inputs."""
    sums = {name: Sums() for name, _ in norms}
    for batch in in_chunks(small) if norms else ():
        observe(stream, batch, sums)
    return tuple(fit_norm(name, module, sums[name]) for name, module in norms if sums[name].n)


class Sums:
    """Sums and sums of squares of the inputs of a norm, minus its running mean."""

    def __init__(self) -> None:
        self.n, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor, about: Tensor) -> None:
        """Add a norm's inputs, minus its running mean."""
        rows = x.movedim(1, -1).reshape(-1, x.shape[1]).double() - about.double()
        self.n += len(rows)
        self.first, self.second = self.first + rows.sum(0), self.second + rows.square().sum(0)


def worst_misfit(
    stream: LiveStream, batch: InputBatch, around: AbstractContextManager[None] | None = None
) -> float:
    """Return the largest misfit of the batch norms; NaN if there is none.

    Parameters
    ----------
    stream : LiveStream
    batch : InputBatch
    around : context manager, optional
        A change of the model, made for this run.
    """
    norms = batch_norms(stream)
    sums = {name: Sums() for name, _ in norms}
    if norms:
        observe(stream, batch, sums, around)
    fits = [fit_norm(name, module, sums[name]).misfit for name, module in norms if sums[name].n]
    return max(fits, default=math.nan)


def misfit_after(before: float, after: float) -> Misfit:
    """Return what a change of the inputs or of a part does to a misfit of the batch norms.

    Parameters
    ----------
    before, after : float
        Misfit in nats without and with the change; NaN without a batch norm.

    Examples
    --------
    >>> misfit_after(2.0, 1.0), misfit_after(2.0, 0.3), misfit_after(0.1, 0.0)
    ('left', 'gone', 'none')
    >>> misfit_after(2.0, math.nan)
    'none'
    """
    if not before > MISFIT or math.isnan(after):
        return "none"
    return "left" if after > max(MISFIT, LEFT * before) else "gone"


def observe(
    stream: LiveStream,
    batch: InputBatch,
    sums: dict[str, Sums],
    around: AbstractContextManager[None] | None = None,
) -> object:
    """Run a batch, add the inputs of the norms to their sums, and return the output."""
    sites = [Site(name, 0, "in") for name in sums]
    watched = watch(
        stream.model.module, batch, sites,
        around=around, as_found=not stream.model.module.training, place=stream.probe.place,
    )  # fmt: skip
    for site in sites:
        x = watched.tensors.get(str(site))
        mean = stream.probe.names.modules[site.path].get_buffer("running_mean")
        if x is not None and x.ndim >= 2 and x.shape[1] == len(mean):
            sums[site.path].add(x.cpu(), mean.cpu())
    return watched.output


def fit_norm(name: str, module: nn.modules.batchnorm._BatchNorm, sums: Sums) -> NormFit:
    """Compare a batch norm's running statistics with the sums of its inputs."""
    mean, running = module.get_buffer("running_mean").cpu(), module.get_buffer("running_var").cpu()
    usual = running.double() + module.eps
    shift = sums.first / sums.n
    variance = (sums.second / sums.n - shift.square()).clamp(min=0) + module.eps
    ratio = variance / usual
    misfit = 0.5 * (ratio + shift.square() / usual - 1 - ratio.log())
    affine = [] if module.weight is None else [module.weight == 1, module.bias == 0]
    return NormFit(
        path=name,
        misfit=float(misfit.nan_to_num(math.inf).median()),
        shift=float((shift.abs() / usual.sqrt()).median()),
        ratio=float(ratio.median()),
        unmoved=bool((mean == 0).all() and (running == 1).all()),
        untrained=all(bool(same.all()) for same in affine),
    )
