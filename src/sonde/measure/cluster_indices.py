"""Cluster quality of a site's labelled rows, by six standard indices.

For shares of variance alone, over all rows, see ``class_separability``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

from sonde.core.chart import Chart, bars
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._clusters import NAMES, Labelings, cluster_figures, labelled_rows
from sonde.measure._flags import precision_flags, relative_spread
from sonde.stats import HashSample, HashSampleState
from sonde.stats.sampled_rows import SampledRows

RATIO, SHARE = NAMES.index("calinski_harabasz"), NAMES.index("eta2")


@final
@dataclass(frozen=True, kw_only=True)
class ClusterIndicesResult(Result):
    """Mean silhouette and five more indices; ``errors`` and ``nulls`` are for all six.

    ``davies_bouldin`` and ``xie_beni`` are low for good clusters, ``calinski_harabasz``, ``dunn``
    and ``eta2`` high.
    """

    direction: Direction = "higher"
    davies_bouldin: float
    calinski_harabasz: float
    dunn: float
    xie_beni: float
    eta2: float
    errors: dict[str, float]
    nulls: dict[str, float]

    def chart(self) -> Chart:
        """Return a chart with a bar for each index."""
        indices = {name: float(self) if name == NAMES[0] else getattr(self, name) for name in NAMES}
        rows = [{"index": name, "value": value} for name, value in indices.items()]
        return bars("Cluster indices", rows, "index", "value")

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return a row for each index: its name, value, standard error and null."""
        values = [float(self), *(getattr(self, name) for name in NAMES[1:])]
        columns: dict[str, Any] = {"index": list(NAMES), "value": values}
        for name, figures in (("se", self.errors), ("null", self.nulls)):
            if figures:
                columns[name] = [figures[index] for index in NAMES]
        return pa.table(columns)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@final
@dataclass(frozen=True)
class ClusterIndices(Instrument):
    """Mean silhouette of the classes, and five more cluster indices of the sampled rows.

    A row's silhouette is ``(b - a) / max(a, b)`` with its mean distance ``a`` to its own class and
    ``b`` to the nearest other class. Davies-Bouldin: the mean over classes of the worst
    ``(r_k + r_l) / |m_k - m_l|`` with mean distances ``r`` to the class mean ``m``. Calinski-
    Harabasz: mean square between classes over mean square within. Dunn: least distance between
    classes over the largest distance within a class. Xie-Beni: mean square within classes over the
    least squared distance of class means. ``eta2``: share of variance between classes. Nulls come
    from 20 shuffles of the labels among groups.

    Range        [-1, 1]; higher = better separated.
                 Invariant to  rotation, isotropic scale, shifts.
    Cost         one pass; state ``m`` rows; result O(m^2 (dim + 41 classes)), 1,024 lines at once.
    Assumes      two classes or more, with rows of two groups in each (flag ``few_rows``; NaN if no
                 class has them); rows with label -1 are left out. ``dunn`` is a ratio of extremes
                 and falls as rows are added: compare it only at equal ``n``.
    Differs      from the papers: distances within one group (document) do not enter the silhouette
                 and ``dunn``.

    Parameters
    ----------
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> x = [[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [6.0, 2.0]]
    >>> round(cluster_indices(x, [0, 0, 1, 1]).value, 6)
    0.675445

    References
    ----------
    rousseeuw1987silhouettes, davies1979cluster, calinski1974dendrite, dunn1974separated,
    xie1991validity
    """

    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "rousseeuw1987silhouettes"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"m": 64},)

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 2")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the sample of rows and their labels."""
        return {"sample": HashSample(self.m), "label": HashSample(self.m, column="label")}

    def result(self, sample: HashSampleState, label: HashSampleState) -> ClusterIndicesResult:
        """Compare distances within classes with distances between them."""
        rows, flags = labelled_rows(SampledRows.of([sample, label]))
        labelings = Labelings.of("ClusterIndices", rows)
        x = rows.rows[0]
        figures = cluster_figures(x, labelings)
        spread = relative_spread(x.mean(0), x.var(0, correction=0))
        if spread == 0.0:
            figures = figures * math.nan
        alone = not bool(labelings.is_paired.all())
        flags += tuple(precision_flags(spread, sample.rows.dtype) if spread > 0 else ["dead"])
        value, se, null = labelings.spread(figures)
        if se is not None:  # of halves it has half the size: its error follows from that of eta2
            n, count = len(rows), labelings.n_classes
            se[RATIO] = se[SHARE] * (n - count) / (count - 1) / (1.0 - value[SHARE]).square()
        named = dict(zip(NAMES, value.tolist(), strict=True))
        return ClusterIndicesResult(
            value=named.pop("silhouette"),
            se=None if se is None else float(se[0]),
            null=float(null[0]),
            n=len(rows),
            range=(-1.0, 1.0),
            flags=(*flags, *(("few_rows",) if alone else ())),
            conventions={
                "distance": "euclidean",
                "pairs": "of different groups",
                "null": "20 shuffles of the labels",
                "se": labelings.how,
            },
            **named,
            errors={} if se is None else dict(zip(NAMES, se.tolist(), strict=True)),
            nulls=dict(zip(NAMES, null.tolist(), strict=True)),
        )


cluster_indices = as_function(ClusterIndices, "label")
