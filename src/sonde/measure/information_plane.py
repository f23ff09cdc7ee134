"""Information of a layer about input and label, in nats: a point of the information plane.

The value depends on the estimator: a net without noise keeps everything about distinct inputs, and
each estimator discards information in its own way. Compare layers and steps by the same estimator,
and check with a second estimator. For two sites of vectors see ``mutual_information``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument, Read
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._codes import COMPRESSORS, Compressor, code_of
from sonde.measure._noisy_rows import information_bounds
from sonde.measure._reads import labelled_sample, unlabelled
from sonde.stats import HashSample, HashSampleState, Symbols
from sonde.stats.joint_counts import entropy_nats, information_nats
from sonde.stats.sampled_rows import SHUFFLES, SampledRows

CHUNK_ENTRIES = 1 << 18


About = Literal["input", "label"]
Estimator = Literal["adaptive_bins", "bins", "adaptive_kde", "kde", "compressed"]
CHOICES: Final = ("estimator", "n_bins", "low", "high", "noise", "codes", "compressor")
NEIGHBOURS, MOST_CODES = 4, 6
NOISES: Final = {"kde": 0.05, "adaptive_kde": 1e-3, "compressed": 1e-2}


@final
@dataclass(frozen=True, kw_only=True)
class InformationPlaneResult(Result):
    """Information in nats; ``most`` is the entropy of the rows, or of their labels.

    ``lower`` is the lower bound of the kernels about the input (else NaN), ``n_symbols`` how many
    patterns the bins tell apart (else 0), ``noise_variance`` that of kernels and of codes (0 for
    bins), ``kept`` the share of the layer's variance that codes hold (else 1).
    """

    direction: Direction = "none"
    unit: str = "nats"
    most: float
    lower: float
    n_symbols: int
    noise_variance: float
    kept: float = 1.0

    @classmethod
    def over_training(cls, found: Iterable[tuple[int, str, Result]]) -> Chart | None:
        """Return the plane: a line over the steps for each layer, input across, label up.

        None if no step and site has both figures by the same estimator.
        """
        by_point: dict[tuple[str, str, int], dict[str, Result]] = {}
        for step, site, result in found:
            chosen = [result.conventions.get(name) for name in CHOICES]
            estimator = " ".join(f"{value}" for value in chosen if value is not None)
            point = by_point.setdefault((estimator, site, step), {})
            point[result.conventions["about"]] = result
        points = {key: both for key, both in by_point.items() if len(both) == len(get_args(About))}
        if not points:
            return None
        several = len({estimator for estimator, *_ in points}) > 1
        rows = [
            _point(step, f"{site}, {estimator}" if several else site, both)
            for (estimator, site, step), both in points.items()
        ]
        x = ChartAxis("input", title="about the input, nats")
        y = ChartAxis("label", title="about the label, nats")
        full = sum("saturated" in row["flags"] for row in rows)
        title = "The information plane, step by step"
        title += f"; saturated at {full} of {len(rows)} points" if full else ""
        return curves(title, rows, x, y, by="site", order="step")


@final
@dataclass(frozen=True)
class InformationPlane(Instrument):
    """Information of a layer about its input or the label, in nats.

    With bins, a row is the pattern ``T`` of its units' bins: ``I(input; T) = H(T)``, since a net
    without noise gives one pattern for one input, and ``I(T; label)``. With kernels, noise of
    variance ``v`` is assumed in each unit. The value is the upper bound ``-mean_i ln mean_j
    exp(-d_ij^2 / (2 v))``; about the label, this bound less its average within classes.

    ``bins`` cuts all units at equal steps from ``low`` to ``high``; ``adaptive_bins`` at the
    quantiles of the values that occur in the layer, so that no scale is chosen. ``kde`` takes
    ``noise`` as the variance; ``adaptive_kde`` as a share of the largest squared value.

    ``compressed`` looks at a code ``c`` of few uncorrelated numbers of deviation 1, to which noise
    of variance ``v`` is added: ``h(c + noise) - codes / 2 ln(2 pi e v)`` about the input, and about
    the label ``h(c + noise)`` less its average within classes, with entropies ``h`` from the
    distance of the 4th neighbour. It counts no rows, so it is not bound by ``ln n``.

    Range        [0, ln n] about the input (``compressed``: [0, inf)), [0, entropy of the labels]
                 about the label; nats; higher = more is known. Flag ``saturated`` where more
                 than half of the rows have a pattern of their own, or the bound is above nine
                 tenths of ``ln n``: more rows would give more.
                 Invariant to permutation of units; adaptive bins: one increasing map of all units;
                 adaptive kernel: isotropic scale; kernels: rotation.
    Cost         one pass; state ``m`` rows; result O(m dim log m), kernels O(m^2 dim), 41 times
                 over about the label.
    Assumes      rows of distinct inputs to a net without noise. Rows with label -1 are left out
                 about the label. The null is a constant layer, or labels shuffled among groups; if
                 patterns are nearly distinct, the null of labels is nearly the value.
                 ``compressed``: 5 rows or more of each class (flag ``few_rows``), and at most 6
                 codes (flag ``high_dim``); the autoencoder's code changes with rounding.
    Differs      from the papers: the share of ``adaptive_kde`` is of the largest square, and the
                 noise of ``compressed`` is added to the code (both ours).

    Parameters
    ----------
    about : {"input", "label"}, default="input"
        The axis of the plane.
    estimator : str, default="adaptive_bins"
        Way to make the layer coarse: "adaptive_bins", "bins", "adaptive_kde", "kde" or
        "compressed".
    n_bins : int, default=30
        Bins of each unit.
    low, high : float or None, default=None
        Ends of ``bins``: -1 and 1 for tanh; None takes the range of the layer. Values outside fall
        into the first or the last bin.
    noise : float or None, default=None
        Noise of kernels and codes. None: 0.05 for ``kde``, 0.001 for ``adaptive_kde``, 0.01 for
        ``compressed``.
    codes : int, default=2
        Length of a code of ``compressed``.
    compressor : {"pca", "autoencoder"}, default="autoencoder"
        What makes the code: principal components, or a small net that follows curved rows.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> x = torch.cartesian_prod(*4 * [torch.tensor([0.0, 1.0])])
    >>> round(information_plane(x).bits().value, 6)
    4.0
    >>> round(information_plane(x, x[:, 0].long()).bits().value, 6)
    1.0

    References
    ----------
    shwartzziv2017opening, chelombiev2019adaptive, kolchinsky2017mixture, butakov2024compression
    """

    about: About = "input"
    estimator: Estimator = "adaptive_bins"
    n_bins: int = 30
    low: float | None = None
    high: float | None = None
    noise: float | None = None
    codes: int = 2
    compressor: Compressor = "autoencoder"
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "shwartzziv2017opening"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"about": "label", "estimator": "bins", "low": -1.0, "high": 1.0, "m": 64},
        {"estimator": "adaptive_kde", "m": 64},
        {"about": "label", "estimator": "kde", "m": 64},
        {"estimator": "compressed", "compressor": "pca", "codes": 1, "m": 64},
    )

    def __post_init__(self) -> None:
        choices = {"about": get_args(About), "estimator": get_args(Estimator)}
        for name, choices_of_name in {**choices, "compressor": COMPRESSORS}.items():
            if getattr(self, name) not in choices_of_name:
                raise InputError(
                    f"InformationPlane: expected {name} of {', '.join(choices_of_name)}, "
                    f"got {getattr(self, name)!r}."
                )
        check_ranges(self, n_bins=">= 2", codes=">= 1", noise="(0, inf)")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise InputError(
                f"InformationPlane: expected low below high, got {self.low} and {self.high}."
            )

    def reads(self) -> Mapping[str, Statistic[Any] | Read]:
        """Return the request for a sample, of labelled rows if about the label."""
        if self.about == "input":
            return {"rows": HashSample(self.m)}
        return labelled_sample(self.m)

    def result(
        self,
        rows: HashSampleState,
        labels: HashSampleState | None = None,
        every: HashSampleState | None = None,
    ) -> InformationPlaneResult:
        """Bin the layer and count, or bound the information of noisy rows."""
        sites = (rows,) if labels is None else (rows, replace(labels, rows=labels.rows[:, None]))
        sample = SampledRows.of(sites)
        if labels is None:
            zero = torch.zeros(len(sample), 1, dtype=torch.float64, device=sample.rows[0].device)
            sample = replace(sample, rows=(*sample.rows, zero))
        x, label = sample.rows
        counts = torch.unique(label, return_counts=True)[1]
        n, bins = max(len(x), 1), "bins" in self.estimator
        compressed = self.estimator == "compressed"
        most = math.log(n) if labels is None else float(entropy_nats(counts)) if len(x) else 0.0
        dead = not bool((x != x[:1]).any()) or (labels is not None and len(counts) < 2)
        variance, kept = 0.0 if bins else self._variance(x), 1.0
        figure: Callable[[SampledRows], Tensor] = (
            self._binned
            if bins
            else lambda s: (self._of_codes if compressed else self._noisy)(s, variance)
        )
        if compressed and not dead:
            sample, kept = self._coded(sample, variance)
        figures = torch.full((4,), math.nan) if dead else figure(sample)
        value, lower, held, symbols = figures.tolist()
        full = symbols > n / 2 if bins else held > 0.9 * math.log(n)
        null, se, how = (math.nan if dead else 0.0), None, "no value"
        if not dead:
            se, how = sample.standard_error(lambda half: figure(half)[0])
            if labels is not None:
                null = sum(float(figure(s)[0]) for s in sample.shuffled()) / SHUFFLES
        flags = {"dead": dead, "saturated": full}
        flags |= {"few_rows": compressed and not dead and math.isnan(value)}
        flags |= {"high_dim": compressed and self.codes > MOST_CODES}
        shuffles = f"{SHUFFLES} shuffles of labels among groups"
        return InformationPlaneResult(
            value=value,
            se=se,
            null=null,
            n=len(sample),
            range=(0.0, most if labels is not None or not compressed else math.inf),
            flags=(
                *sample.flags,
                *unlabelled(rows, every),
                *(flag for flag, raised in flags.items() if raised),
            ),
            conventions={
                "about": self.about,
                **{name: getattr(self, name) for name in CHOICES},
                "se": how,
                "null": "a constant layer" if labels is None else shuffles,
            },
            most=most,
            lower=lower,
            n_symbols=0 if dead else int(symbols),
            noise_variance=variance,
            kept=kept,
        )

    def _binned(self, rows: SampledRows) -> Float[Tensor, "4"]:
        """Return the information, its bound (always NaN), and the patterns' entropy and number."""
        x, label = rows.rows
        kinds, code = torch.unique(label[:, 0], return_inverse=True)
        edges = self._edges(x)
        if not len(edges):
            return torch.tensor([0.0, math.nan, 0.0, 1.0])
        counts = Symbols(edges, len(kinds)).observe(x, code).counts
        entropy = entropy_nats(counts.sum(1))
        information = entropy if self.about == "input" else information_nats(counts)
        return torch.stack(
            [information, information * math.nan, entropy, torch.tensor(len(counts)).double()]
        )

    def _edges(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "edge"]:
        if self.estimator == "adaptive_bins":
            share = torch.arange(1, self.n_bins, dtype=torch.float64) / self.n_bins
            values = torch.unique(x).cpu()
            at = share * (len(values) - 1)
            below = values[at.floor().long()]
            edges = below + (at - at.floor()) * (values[at.ceil().long()] - below)
        else:
            low = float(x.min()) if self.low is None else self.low
            high = float(x.max()) if self.high is None else self.high
            steps = torch.arange(1, self.n_bins, dtype=torch.float64)
            edges = low + (high - low) * steps / self.n_bins  # 0 in the middle of -1 .. 1, exactly
        return torch.unique(edges)

    def _variance(self, x: Float[Tensor, "row dim"]) -> float:
        noise = NOISES[self.estimator] if self.noise is None else self.noise
        if self.estimator != "adaptive_kde":
            return noise
        return noise * float(x.square().max()) if len(x) else 0.0

    def _coded(self, rows: SampledRows, variance: float) -> tuple[SampledRows, float]:
        """Return noisy codes of the rows, and the fraction of variance they explain."""
        code, kept = code_of(rows.rows[0], self.codes, self.compressor)
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(code.shape, generator=draw, dtype=torch.float64).to(code)
        return replace(rows, rows=(code + math.sqrt(variance) * noise, rows.rows[1])), kept

    def _of_codes(self, rows: SampledRows, variance: float) -> Float[Tensor, "4"]:
        """Return the information of noisy codes, NaN (no bound), 0 and 0 (no patterns)."""
        code, label = rows.rows
        whole = neighbour_entropy(code, rows.group, NEIGHBOURS)
        if self.about == "input":
            information = whole - code.shape[1] / 2 * math.log(2 * math.pi * math.e * variance)
        else:
            kinds = [(label[:, 0] == kind).nonzero()[:, 0] for kind in torch.unique(label)]
            within = (
                len(at) * neighbour_entropy(code[at], rows.group[at.cpu()], NEIGHBOURS)
                for at in kinds
            )
            information = whole - sum(within, torch.zeros(())) / len(code)
        return torch.stack(
            [
                information,
                information * math.nan,
                torch.zeros_like(information),
                torch.zeros_like(information),
            ]
        )

    def _noisy(self, rows: SampledRows, variance: float) -> Float[Tensor, "4"]:
        """Return both bounds, the upper bound about the input, and 0 (no patterns)."""
        x, label = rows.rows
        both = information_bounds(x, torch.zeros_like(label), variance)
        information = both
        if self.about == "label":
            information = both - information_bounds(x, label, variance)
            information[1] = math.nan
        return torch.cat([information, both[:1], torch.zeros_like(both[:1])])


def _point(step: int, site: str, both: Mapping[str, Result]) -> dict[str, Any]:
    """Return a row of the information plane."""
    nats = {about: float(both[about]) for about in get_args(About)}
    flags = ", ".join(sorted({flag for result in both.values() for flag in result.flags}))
    words = [site, f"step {step:,}", ", ".join(f"{v:.3g}" for v in nats.values()) + " nats", flags]
    tip = " · ".join(filter(None, words))
    return {"step": step, "site": site, **nats, "flags": flags, "tip": tip}


information_plane = as_function(
    InformationPlane, optional=("label",), given={"label": {"about": "label"}}
)


def neighbour_entropy(
    x: Float[Tensor, "row dim"], group: Int[Tensor, "row"], k: int
) -> Float[Tensor, ""]:
    """Return the differential entropy in nats: the mean of ``psi(n) - psi(k) + dim ln(2 r)``.

    ``r`` is the distance of the ``k`` th neighbour among rows of other groups, by the largest
    difference of a unit; ``n`` counts these rows and the row itself. NaN if a row has fewer than
    ``k`` rows of other groups.
    """
    group = group.to(x.device)
    others = len(x) - torch.bincount(group)[group]
    if not len(x) or int(others.min()) < k:
        return torch.tensor(math.nan, dtype=torch.float64)
    reach = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(max(1, CHUNK_ENTRIES // len(x))):
        gaps = torch.cdist(x[rows], x, p=torch.inf)
        gaps.masked_fill_(group[rows, None] == group, torch.inf)
        reach[rows] = gaps.topk(k, largest=False).values[:, -1]
    psi = torch.special.digamma((others + 1).double())
    least = torch.special.digamma(torch.tensor(float(k), dtype=torch.float64))
    return (psi + x.shape[1] * (2 * reach).log()).mean().cpu() - least
