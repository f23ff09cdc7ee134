"""Eigenvalues of a site's rows, from all rows or from a sample, for all ranks."""

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.engine.independent_rows import independent_rows, normal_rows
from sonde.engine.tails import has_heavy_tails
from sonde.measure._flags import moment_flags, precision_flags, relative_spread
from sonde.stats import HashSample, HashSampleState, Moments, MomentsState
from sonde.stats.halves import half_error, random_halves

S = TypeVar("S")
Source = Literal["moments", "sample"]
Rows = MomentsState | HashSampleState
Figure = Callable[[Float[Tensor, "rank"]], Float[Tensor, ""]]
_HALVES = "20 random halves of the sampled groups"
_NO_HALVES = "halves of the sample need four groups and a separate spectrum each"


def spectrum_reads(source: Source) -> dict[str, Statistic[Any]]:
    """Return the request for the eigenvalues: moments of all rows, or sampled rows."""
    return {"rows": Moments() if source == "moments" else HashSample()}


@dataclass(frozen=True)
class SpectrumInstrument(Instrument):
    """A measure of the eigenvalues of one site's covariance.

    Parameters
    ----------
    source : {"moments", "sample"}, default="moments"
        Covariance of all rows, or the Gram matrix of the hash sample (for very wide sites).
    """

    source: Source = "moments"
    least_rows: ClassVar[int] = 2
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"source": "sample"})

    def __post_init__(self) -> None:
        check_ranges(self, source=("moments", "sample"))

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for moments or the sample."""
        return spectrum_reads(self.source)


@dataclass(frozen=True)
class Spectral:
    """Positive eigenvalues in descending order, and their source."""

    values: Float[Tensor, "rank"]
    n: int
    dim: int
    flags: tuple[str, ...]


def spectral(rows: Rows, centered: bool = True) -> Spectral:
    """Return the positive eigenvalues of the covariance (or of the second moment) of rows.

    A sample with fewer rows than units goes through the Gram matrix of its rows, which has the same
    non-zero eigenvalues and a size that does not grow with the width.
    """
    if isinstance(rows, HashSampleState):
        return _sampled(rows, centered)
    dim, flags = rows.scatter.shape[0], list(moment_flags(rows))
    if rows.scatter.ndim == 1:
        raise InputError('spectrum: expected Moments(scatter="full"), got "diag".')
    if centered:
        every = rows.eigenvalues
    else:
        matrix = rows.covariance + torch.outer(rows.mean, rows.mean)
        every = torch.linalg.eigvalsh(matrix).flip(0)
        flags = [f for f in flags if f != "dead" or not bool(rows.mean.detach().any())]
    values = _positive(every, dim, _most(rows.n, dim, centered))
    if len(values) < _most(rows.n, dim, centered):
        flags.append("rank_deficient")
    return Spectral(values, rows.n, dim, tuple(flags))


def _sampled(sample: HashSampleState, centered: bool) -> Spectral:
    x = sample.rows.double()
    n, dim = x.shape
    mean = x.mean(0)
    values = _last.get(sample, ("all", centered), lambda: _of_rows(x, centered))
    flags = precision_flags(relative_spread(mean, (x - mean).square().mean(0)), sample.rows.dtype)
    if len(values) == 0:
        flags = ["dead"]
    elif n <= dim:
        flags.append("few_rows")
    if len(values) < _most(n, dim, centered):
        flags.append("rank_deficient")
    if not sample.is_everything:
        flags.append("sampled")
    return Spectral(values, n, dim, tuple(flags))


def _of_rows(x: Float[Tensor, "row dim"], centered: bool) -> Float[Tensor, "rank"]:
    z = x - x.mean(0) if centered else x
    n, dim = z.shape
    return _of_gram(z @ z.T if n < dim else z.T @ z, n, dim, centered)


def _of_gram(
    gram: Float[Tensor, "side side"], n: int, dim: int, centered: bool
) -> Float[Tensor, "rank"]:
    values = torch.linalg.eigvalsh(gram / n).flip(0)
    return _positive(values, max(n, dim), _most(n, dim, centered))


def _most(n: int, dim: int, centered: bool) -> int:
    """Return the largest number of positive eigenvalues of ``n`` rows."""
    return min(dim, n - 1 if centered else n)


def _positive(values: Float[Tensor, "dim"], size: int, most: int) -> Float[Tensor, "rank"]:
    """Return at most ``most`` eigenvalues that exceed the rounding error of the largest."""
    top = values[:1].detach().clamp(min=0.0)
    values = values[:most]
    return values[values.detach() > size * torch.finfo(values.dtype).eps * top]


def rank_result(
    rows: Rows,
    figure: Figure,
    null: Callable[[int, int], float],
    conventions: dict[str, Any],
    centered: bool = True,
    independent: float | None = None,
) -> "RankResult":
    """Return a rank computed from the eigenvalues, with its null for white rows."""
    spectrum = spectral(rows, centered)
    conventions = {"centered": centered, "divisor": "n", **conventions}
    dead = len(spectrum.values) == 0
    se = None
    if isinstance(rows, HashSampleState):
        se = None if dead else _half_error(rows, figure, centered)
        conventions["se"] = _HALVES if se is not None else _NO_HALVES
    value: float | Tensor = float("nan") if dead else figure(spectrum.values)
    white = max(1.0, null(spectrum.dim, white_degrees(rows, spectrum.n, centered, independent)))
    flags = spectrum.flags
    if not dead and float(torch.as_tensor(value).detach()) > 0.95 * white:
        flags = (*flags, "se_first_order")
    if se is not None and isinstance(rows, HashSampleState):
        effect = _effects(rows, figure, spectrum.values, centered)
        is_heavy = has_heavy_tails(effect.cpu(), rows.group.cpu(), [rows.rows])
        flags = (*flags, "heavy_tails") if is_heavy else flags
    return RankResult(
        value=value,
        se=se,
        null=white,
        n=spectrum.n,
        range=(1.0, float(spectrum.dim)),
        flags=tuple(dict.fromkeys(flags)),
        conventions=conventions,
        dim=spectrum.dim,
    )


def white_degrees(rows: Rows, n: int, centered: bool, independent: float | None) -> int:
    """Return the number of independent white rows with the spectrum of ``n`` grouped ones."""
    if isinstance(rows, HashSampleState):
        independent = _last.get(
            rows,
            "independent",
            lambda: (
                independent_rows((rows.rows, rows.rows), rows.group, n)
                * min(normal_rows(rows.rows), n)
            ),
        )
    return max(round(independent or n) - centered, 1)


def _half_error(sample: HashSampleState, figure: Figure, centered: bool) -> float | None:
    """Return the deviation over random halves, or None if a half is too small."""
    n_groups = len(sample.group.unique())
    if n_groups < 4:
        return None
    halves = _last.get(sample, ("halves", centered), lambda: _spectra_of_halves(sample, centered))
    if any(len(half) == 0 for half in halves):
        return None
    return float(half_error(torch.stack([figure(half) for half in halves]), sample.group))


@torch.enable_grad()
def _effects(
    sample: HashSampleState, figure: Figure, values: Float[Tensor, "rank"], centered: bool
) -> Float[Tensor, "row"]:
    """Return the first-order effect of each row.

    One more row changes an eigenvalue ``l`` by ``(x v)^2 - l``, where ``v`` is its axis.
    """
    squares = _last.get(sample, ("squares", centered), lambda: _squares(sample, centered))
    leaf = values.detach().requires_grad_()
    (slope,) = torch.autograd.grad(figure(leaf), leaf)
    return (squares[:, : len(slope)] - leaf.detach()) @ slope


@torch.no_grad()
def _squares(sample: HashSampleState, centered: bool) -> Float[Tensor, "row rank"]:
    """Return the squared projection of each row on each principal axis, largest first."""
    x = sample.rows.double()
    x = x - x.mean(0) if centered else x
    n, dim = x.shape
    if n < dim:
        values, axes = torch.linalg.eigh(x @ x.T)
        return (axes.square() * values.clamp(min=0)).flip(1)
    return (x @ torch.linalg.eigh(x.T @ x / n)[1]).square().flip(1)


def _spectra_of_halves(sample: HashSampleState, centered: bool) -> list[Float[Tensor, "_rank"]]:
    """Return the eigenvalues of random halves; halves of wide rows share a Gram matrix."""
    x = sample.rows.double()
    x = x - x.mean(0) if centered else x
    dim = x.shape[1]
    gram = x @ x.T if len(x) < dim else None
    spectra: list[Tensor] = []
    for mask in random_halves(sample.group).to(x.device):
        if gram is None:
            spectra.append(_of_rows(x[mask], centered))
        else:
            part = gram[mask][:, mask]
            part = _centred(part) if centered else part
            spectra.append(_of_gram(part, len(part), dim, centered))
    return spectra


class _Last(threading.local):
    """Cache of the last sample's spectra, shared by all ranks of a site."""

    def __init__(self) -> None:
        self._sample: Callable[[], HashSampleState | None] = lambda: None
        self._found: dict[Hashable, Any] = {}

    def get(self, sample: HashSampleState, name: Hashable, make: Callable[[], S]) -> S:
        """Return the cached result of ``make``; results with gradients are not cached."""
        if sample.rows.requires_grad:
            return make()
        if self._sample() is not sample:
            self._sample, self._found = weakref.ref(sample), {}
        if name not in self._found:
            self._found[name] = make()
        return self._found[name]


_last = _Last()


def _centred(gram: Float[Tensor, "row row"]) -> Float[Tensor, "row row"]:
    """Return the Gram matrix of rows minus their mean."""
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()


@dataclass(frozen=True, kw_only=True)
class RankResult(Result):
    """An effective number of dimensions out of ``dim``."""

    direction: Direction = "higher"
    dim: int
