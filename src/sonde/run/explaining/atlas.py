"""Atlas: a document that describes every unit of a site, or every feature of a dictionary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError
from sonde.core.hashing import tensor_key
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream
from sonde.explain import Exemplars, ExemplarsResult, NeuronLensResult, UnitLabels, UnitLabelsResult
from sonde.run.explaining.clamping import Clamped
from sonde.run.fitting.fit import fit
from sonde.stats import ScaledHistogram, ScaledHistogramState

SCHEMA: Final = "sonde-units/1"
BINS: Final = 128
HALFWAY: Final = 0.5
"""Overlap from which on a unit follows a label, between that of a unit always high (0) and 1."""
WITNESSES: Final = 4
Seen = Mapping[tuple[int, int, int], dict[str, Any]]
"""Known facts about a row, by the two words of its example's id and its position."""


@runtime_checkable
class UnitEncoder(Protocol):
    """Encoder that turns rows of a site into features."""

    def encode(self, rows: Float[Tensor, "row dim"], /) -> Float[Tensor, "row feature"]:
        """Return the features of each row; a row's features do not depend on other rows."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedStream(DerivedStream):
    """A stream of one site whose rows are features of a dictionary.

    Parameters
    ----------
    inner : Stream
    dictionary : Dictionary
    """

    inner: Stream
    dictionary: UnitEncoder

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The site's schema, with the width of the dictionary."""
        (site,) = self.inner.schema
        n = self.dictionary.encode(torch.zeros(1, site.dim)).shape[1]
        return (replace(site, dim=n, dtype="float32"),)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the inner stream, with a hash of the features of fixed rows."""
        witness = torch.linspace(-1, 1, WITNESSES * self.inner.schema[0].dim).reshape(WITNESSES, -1)
        with torch.no_grad():
            features = self.dictionary.encode(witness)
        return {**self.inner.identity(), "dictionary": tensor_key(features).hex()}

    def changed(self, batch: Batch) -> Batch:
        """Return the features in place of the rows."""
        with torch.no_grad():
            rows = {k: self.dictionary.encode(x.float()) for k, x in batch.rows.items()}
        return replace(batch, rows=rows)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Results of a pass about every unit of a site.

    Parameters
    ----------
    exemplars : ExemplarsResult
    histogram : ScaledHistogramState
    labels : UnitLabelsResult or None
        None if the data has no labels.
    concepts : sequence of str
        Name of each label.
    site : str
    """

    exemplars: ExemplarsResult
    histogram: ScaledHistogramState
    labels: UnitLabelsResult | None
    concepts: Sequence[str]
    site: str

    @property
    def n_units(self) -> int:
        """Number of units or features."""
        return len(self.histogram.counts)


def fit_atlas(
    stream: Stream,
    dictionary: UnitEncoder | None = None,
    *,
    n: int = 8,
    m: int = 2,
    **how: Any,
) -> Atlas:
    """Return the exemplars, histograms and labels of every unit, from one pass.

    Parameters
    ----------
    stream : Stream
        Of one site.
    dictionary : Dictionary, optional
        Whose features are looked at in place of units.
    n, m : int, default=8 and 2
        Number of largest rows of each unit, and of rows from each range of its values.
    progress : bool, default=True

    Raises
    ------
    InputError
        If the stream has several sites.
    """
    if len(stream.schema) != 1:
        sites = ", ".join(s.key for s in stream.schema[:4])
        raise InputError(
            f"units: expected one site, got {len(stream.schema)}: {sites}, .. Name one with --site."
        )
    rows = stream if dictionary is None else EncodedStream(stream, dictionary)
    is_labelled = bool((stream.first_batch().label >= 0).any())
    by_label = UnitLabels(quantile=None, least=HALFWAY, bins=BINS)
    counted = by_label if is_labelled else UnitHistogram(BINS)
    fitted = fit([Exemplars(n=n, m=m), counted], rows, **how)
    exemplars, second = fitted.result(Exemplars), fitted.result(type(counted))
    labels = second if isinstance(second, UnitLabelsResult) else None
    site = stream.schema[0].key
    return Atlas(exemplars, second.counts, labels, stream.label_names, site)


@dataclass(frozen=True, kw_only=True)
class HistogramResult(Result):
    """Results whose ``value`` is the fraction of rows on which each unit is above 0."""

    counts: ScaledHistogramState


@dataclass(frozen=True)
class UnitHistogram(Instrument):
    """Histogram of each unit, for data without labels.

    Parameters
    ----------
    bins : int
    """

    bins: int

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requested histograms."""
        return {"counts": ScaledHistogram(self.bins)}

    def result(self, counts: ScaledHistogramState) -> HistogramResult:
        """Return the histograms, with the fraction of rows on which each unit is above 0."""
        half = counts.counts.shape[1] // 2
        return HistogramResult(value=counts.above[:, half] / counts.n, n=counts.n, counts=counts)


def atlas_document(
    atlas: Atlas,
    *,
    model: str,
    data: str,
    dictionary: str | None = None,
    loss: Mapping[str, Any] | None = None,
    lens: NeuronLensResult | None = None,
    token_names: Mapping[int, str] | None = None,
    clamped: Clamped | None = None,
    seen: Seen | None = None,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the JSON of an atlas, ``sonde-units/1``.

    Parameters
    ----------
    atlas : Atlas
    model, data, dictionary : str
        As they were typed.
    loss : mapping, optional
        The loss that the dictionary recovers.
    lens : NeuronLensResult, optional
        Tokens that each unit writes.
    token_names : mapping of int to str, optional
        Text of each token or class.
    clamped : Clamped, optional
        What clamping each unit changes.
    seen : mapping, optional
        Known facts about each row, such as its text; without ``seen``, rows have no such facts.
    inputs : mapping of str to str, optional
        Pictures, by the name that ``seen`` gives.
    """
    names = token_names or {}
    shares = (atlas.histogram.above[:, BINS // 2].double() / atlas.histogram.n).tolist()
    units = [_unit(atlas, unit, shares[unit], seen or {}) for unit in range(atlas.n_units)]
    for unit, entry in enumerate(units):
        if lens is not None:
            entry["writes"] = _named(lens.top[unit], lens.top_score[unit], names, 1)
            entry["against"] = _named(lens.bottom[unit], lens.bottom_score[unit], names, -1)
            entry["z"] = rounded(float(torch.as_tensor(lens.value)[unit]))
        if clamped is not None and unit in clamped.units:
            i = clamped.units.index(unit)
            entry["clamped"] = {
                "to": rounded(float(clamped.level[i])),
                "kl": rounded(float(clamped.divergence[i])),
                "up": _named(clamped.up[i], clamped.rise[i], names, 1),
                "down": _named(clamped.down[i], clamped.fall[i], names, -1),
            }
    labels = atlas.labels
    return {
        "schema": SCHEMA,
        "model": model,
        "data": data,
        "site": atlas.site,
        "dictionary": dictionary,
        "loss": None if loss is None else dict(loss),
        "n": atlas.histogram.n,
        "labelled": None if labels is None else rounded(labels.labelled),
        "concepts": [str(name) for name in atlas.concepts],
        "inputs": dict(inputs or {}),
        "units": units,
    }


def _unit(atlas: Atlas, unit: int, share: float, seen: Seen) -> dict[str, Any]:
    rows = [
        {"v": rounded(one.value), "r": one.range, **seen.get((*one.ids, one.position), {})}
        for one in atlas.exemplars.of(unit)
    ]
    entry: dict[str, Any] = {
        "unit": unit,
        "max": rows[0]["v"] if rows else None,
        "above": rounded(share),
        "histogram": _histogram(atlas.histogram, unit),
        "rows": rows,
    }
    labels = atlas.labels
    if labels is not None:
        best = int(labels.concept[unit])
        names = atlas.concepts
        entry["concept"] = names[best] if best < len(names) else str(best)
        entry["overlap"] = rounded(float(torch.as_tensor(labels.value)[unit]))
        entry["chance"] = rounded(float(torch.as_tensor(labels.null)[unit]))
        entry["labelled"] = int(labels.label[unit]) >= 0
        entry["precision"] = rounded(float(labels.average_precision[best, unit]))
    return entry


def _histogram(state: ScaledHistogramState, unit: int) -> dict[str, Any]:
    """Return the bins from the first to the last non-empty bin: lower end, width, counts."""
    counts = state.counts[unit]
    filled = torch.nonzero(counts).flatten().tolist()
    first, last = filled[0], filled[-1]
    width = 2.0 ** int(state.exponent[unit])
    low = (first - counts.shape[0] // 2) * width
    return {"low": rounded(low), "width": width, "counts": counts[first : last + 1].tolist()}


def _named(
    tokens: Int[Tensor, "token"],
    scores: Float[Tensor, "token"],
    names: Mapping[int, str],
    sign: int,
) -> list[list[Any]]:
    """Return the names and scores of the tokens whose score has the given sign."""
    pairs = zip(tokens.tolist(), scores.tolist(), strict=True)
    return [[names.get(t, str(t)), rounded(s)] for t, s in pairs if s * sign > 0]


def rounded(value: float) -> float | None:
    """Return a number with four digits; None for NaN and infinity, which JSON lacks."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
