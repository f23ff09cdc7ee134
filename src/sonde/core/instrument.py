"""Instruments: methods that compute a result from fitted statistics of rows."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Unpack, cast, get_type_hints

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sonde.core.batch import Batch
from sonde.core.columns import Columns
from sonde.core.errors import InputError, ShapeError, SondeWarning
from sonde.core.hashing import rank_key
from sonde.core.inputs import Model
from sonde.core.keywords import InitSignature, checked_new
from sonde.core.plan import Part
from sonde.core.result import Result, Scorer
from sonde.core.statistic import Span, Statistic, parameter_names
from sonde.core.stream import Stream
from sonde.core.tensors import as_tensor

SAMPLE = 2048
WIDEST_FULL = 2048
"""Up to this width the default is a whole ``dim x dim`` matrix, above it the variances alone."""


class Where(ABC):
    """Filter of the rows that a statistic reads: a frozen dataclass of parameters.

    ``by_layout`` says that the mask follows from example and position alone, so that sites whose
    rows correspond share it. ``finite`` says that rows which are not finite are left out, as every
    fit requires. ``sinks`` says that tokens with massive states are read too.
    """

    by_layout: ClassVar[bool] = False
    finite: ClassVar[bool] = True
    sinks: ClassVar[bool] = False

    @abstractmethod
    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"] | None:
        """Return the mask of the kept rows of ``key``; None keeps all rows."""

    @property
    def advice(self) -> str:
        """Advice if no row is kept; empty if this filter alone cannot remove all rows."""
        return ""


@dataclass(frozen=True)
class Every(Where):
    """All rows."""

    by_layout: ClassVar[bool] = True

    def mask(self, batch: Batch, key: str) -> None:
        """Keep every row."""


@dataclass(frozen=True)
class WithSinks(Where):
    """All rows, also those of sinks, which the other filters leave out."""

    by_layout: ClassVar[bool] = True
    sinks: ClassVar[bool] = True

    def mask(self, batch: Batch, key: str) -> None:
        """Keep every row."""


@dataclass(frozen=True)
class OnlySinks(Where):
    """The rows of sinks alone."""

    sinks: ClassVar[bool] = True

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"]:
        """Keep the rows of sinks."""
        return batch.column("sink", key)


@dataclass(frozen=True)
class Subsample(Where):
    """A hashed sample of about one row in ``every``, at most ``cap`` rows per example.

    Parameters
    ----------
    every : int, default=8
        The sample keeps about 1 / ``every`` of the rows.
    cap : int, default=64
        Most rows of one example, those of smallest draw. An example lies whole in one batch.
    """

    every: int = 8
    cap: int = 64
    by_layout: ClassVar[bool] = True

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"]:
        """Keep rows whose ``subsample`` key is a multiple of ``every``."""
        draw = batch.draw(key, "subsample")
        keep = torch.as_tensor(draw.numpy().view(np.uint64) % np.uint64(self.every) == 0)
        example = batch.example[key]
        counts = torch.bincount(example[keep], minlength=len(batch))
        for crowded in torch.nonzero(counts > self.cap).flatten().numpy().tolist():
            rows = torch.nonzero(keep & (example == crowded)).flatten()
            late = torch.argsort(rank_key(draw[rows]))[self.cap :]
            keep[rows[late]] = False
        return keep


@dataclass(frozen=True)
class NotLabelled(Where):
    """All rows except the rows of one label; rows without a label are kept.

    Parameters
    ----------
    label : int
        Rows with this label are left out.
    """

    label: int

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"]:
        """Keep the rows of other labels."""
        return batch.column("label", key) != self.label

    @property
    def advice(self) -> str:
        """Advice to pass labels if label -1 is excluded; else empty."""
        if self.label != -1:
            return ""
        return "No finite row has a label other than -1: pass labels, or check the label column."


@dataclass(frozen=True)
class AsScored(Where):
    """Rows as in scoring, where non-finite rows are kept.

    Parameters
    ----------
    among : Where, default=Every()
        Which rows are kept.
    """

    among: Where = field(default_factory=Every)
    finite: ClassVar[bool] = False

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"] | None:
        """Keep the rows that ``among`` keeps."""
        return self.among.mask(batch, key)


@dataclass(frozen=True)
class Read:
    """A statistic with the filter of its rows and their part of the plan.

    ``part = None`` stands for the instrument's own part: ``fit`` for detectors, ``all`` for others.
    Without a split every part is all rows.

    Parameters
    ----------
    statistic : Statistic[Any]
        Statistic that is fitted.
    where : Where, optional
        Filter of the rows; all rows by default.
    part : Optional[Literal['all', 'fit', 'held']], optional
        Part of the plan whose rows are read; by default the instrument's own part.
    """

    statistic: Statistic[Any]
    where: Where = field(default_factory=Every)
    part: Part | None = None


class Instrument(ABC):
    """A method with a result about one site, a pair of sites, or all sites.

    Subclasses are final frozen dataclasses of parameters: ``reads`` names the statistics that they
    need, ``result`` makes the answer of them.

    Attributes
    ----------
    span : {"one", "pair", "all"}
        Which sites one result is about.
    equal_widths : bool
        Whether the sites of one result must be of one width.
    least_sites : int
        The smallest number of sites where the span is all.
    least_rows : int
        The smallest number of rows for which the quantity is defined; 0 if any number will do.
    estimates : bool
        Whether its value is an estimate, to which a standard error belongs. False for detectors,
        whose scores are calibrated instead, and for instruments that propose an edit.
    rows_numbered : bool
        Whether ``fit`` knows rows of plain arrays by their numbers. False for shifts, which find
        the rows that two sides share by content.
    word : str
        Its name on the command line, if that is not the class name in snake_case.
    paper : str
        Key in ``docs/papers.bib``.
    examples : tuple of dict
        Small parameter sets for the contract tests.
    """

    call_form: ClassVar[str] = "sonde.fit({name}(), sonde.read(model, data))"
    __new__ = checked_new
    __signature__ = InitSignature()

    span: ClassVar[Span] = "one"
    equal_widths: ClassVar[bool] = False
    least_sites: ClassVar[int] = 2
    least_rows: ClassVar[int] = 0
    estimates: ClassVar[bool] = True
    rows_numbered: ClassVar[bool] = True
    word: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    part: ClassVar[Part] = "all"

    @abstractmethod
    def reads(self) -> Mapping[str, Statistic[Any] | Read]:
        """Return the statistics that ``result`` takes, by the names of its parameters."""

    @abstractmethod
    def result(self, *_: Any, **states: Any) -> Result:
        """Return the result. For the spans pair and all, states of single sites come as tuples."""

    def then(self, result: Any) -> "Instrument | None":
        """Return the instrument of the next pass at the same sites, or None."""
        return None

    def at_width(self, dim: int) -> "Instrument":
        """Return the instrument to use for rows of width ``dim``; by default itself.

        An instrument with a parameter ``"auto"`` keeps a whole ``dim x dim`` matrix up to
        ``WIDEST_FULL`` and the variances alone above it.
        """
        return self

    def in_groups(self) -> "Instrument":
        """Return the instrument to use for rows that come in groups; by default itself.

        Rows come in groups if a group column was given, or if an example has more than one row.
        """
        return self

    @property
    def title(self) -> str:
        """Name of the method in messages."""
        return type(self).__name__

    def reading(self) -> dict[str, Any]:
        """Return the options of ``sonde.read`` that this instrument needs, by name.

        The command line takes them as defaults; a stream that was read with others is refused.
        """
        return {}

    def all_reads(self) -> dict[str, Read]:
        """Return ``reads`` with every default filled in."""
        filled: dict[str, Read] = {}
        for name, read in self.reads().items():
            read = read if isinstance(read, Read) else Read(read)
            filled[name] = Read(read.statistic, read.where, read.part or self.part)
        return filled

    def require_rows(self, result: Result, place: str) -> None:
        """Raise if there are fewer rows than the result needs.

        Raises
        ------
        InputError
            With both numbers and the place.
        """
        if result.n < self.least_rows:
            what = "groups" if result.conventions.get("rows") == "groups" else "rows"
            raise InputError(
                f"{type(self).__name__}: expected at least {self.least_rows} {what}, got "
                f"{result.n} at {place}. Give more {what}."
            )

    def fit(
        self, x: Any, label: Any = None, *, y: Any = None, seed: int = 0, **columns: Unpack[Columns]
    ) -> Any:
        """Fit on plain arrays: every row, no calibration.

        Parameters
        ----------
        x : array (row, dim)
            Rows; for instruments over all sites a mapping of site name to rows, or a list of them.
        label : ints (row,), optional
            Classes; -1 = none.
        y : array (row, dim2), optional
            Rows of the second site of a pair.
        seed : int, default=0
            Key of the hash of rows.
        **columns : optional
            What comes with the rows, see ``Columns``.

        Returns
        -------
        Result
            With its standard error, if one is known.
        """
        from sonde.engine.folding import fit_arrays

        if isinstance(x, Stream):
            raise InputError(
                f"{type(self).__name__}.fit: expected an array of rows, got a stream. Call "
                f"sonde.fit({type(self).__name__}(...), stream)."
            )
        if isinstance(x, nn.Module | Model):
            name = type(self).__name__
            raise InputError(
                f"{name}.fit: expected an array of rows, got a model. Call "
                f"sonde.fit({name}(...), sonde.read(model, data))."
            )
        sites = x if y is None else {"x": x, "y": y}
        if self.span == "all" and isinstance(x, list | tuple):
            sites = {str(i): rows for i, rows in enumerate(cast("list[Any]", x))}
        one_site = self.at_width(_width(x)) if self.span == "one" else self
        return fit_arrays(one_site, sites, label=label, seed=seed, **columns)


def _width(x: Any) -> int:
    """Return the width of the rows of an array; 0 for a vector or a mapping."""
    shape = () if isinstance(x, Mapping) else as_tensor("Stream.of", x, "x", ShapeError).shape
    return int(shape[-1]) if len(shape) > 1 else 0


class Detector(Instrument):
    """An instrument whose result scores rows; a higher score is always more unusual.

    If the span is all, a score is about matching rows of all sites: ``score`` takes ``x`` and
    ``grad`` as tuples, one entry for each site in the order of execution.

    Attributes
    ----------
    reduces : bool
        Whether its scorer makes a score of an example from the columns of its rows (``reduced``
        with ``"own"``), in place of a named reduction of their scores.
    whole_examples : bool
        Whether a row is scored together with all other rows of its example. Its score then depends
        on these rows, and on nothing else in its batch.
    """

    part: ClassVar[Part] = "fit"
    estimates: ClassVar[bool] = False
    reduces: ClassVar[bool] = False
    whole_examples: ClassVar[bool] = False

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name, as scikit-learn asks for them.

        Parameters
        ----------
        deep : bool, default=True
            Without effect: the parameters of a detector are plain values.
        """
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]

    def set_params(self, **parameters: Any) -> "Detector":
        """Change parameters in place, as scikit-learn's searches do, and return the detector.

        Results that were fitted before keep the parameters that they were fitted with.

        Parameters
        ----------
        **parameters
            New values by name.

        Raises
        ------
        TypeError
            If a name is wrong.
        InputError
            If a value is out of range; the detector is then unchanged.
        """
        changed = type(self)(**{**self.get_params(), **parameters})
        for name, value in changed.get_params().items():
            object.__setattr__(self, name, value)
        return self

    def fit_predict(
        self, x: Any, label: Any = None, *, alpha: float = 0.05
    ) -> Int[np.ndarray, "row"]:
        """Fit on rows and return -1 for the most outlying of these rows, 1 for the others.

        The signs are those of scikit-learn. The threshold is taken from the scores of the fitted
        rows themselves, so it promises nothing for new rows: use ``sonde.fit`` with ``calibrate``
        for these. A row counts among its own neighbours: a method of neighbours with ``k=1`` marks
        no row.

        Parameters
        ----------
        x : array (row, dim)
            Rows.
        label : ints (row,), optional
            Classes of the rows, for detectors that use them.
        alpha : float, default=0.05
            Largest fraction of the finite rows that is marked, in (0, 1).

        Raises
        ------
        InputError
            If ``alpha`` is out of range, or the detector scores more than rows.

        Warns
        -----
        SondeWarning
            If no row is marked, because too many rows share the highest score.
        """
        name, needs = type(self).__name__, score_needs(self)
        if not 0.0 < alpha < 1.0:
            raise InputError(f"{name}.fit_predict: expected alpha in (0, 1), got {alpha}.")
        if needs != ("x",) or self.span != "one":
            sites = "one site" if self.span == "one" else "several sites"
            raise InputError(
                f"{name}.fit_predict: expected a detector that scores the rows of one site alone, "
                f"got one that reads {', '.join(needs)} of {sites}. Use sonde.fit."
            )
        rows = as_tensor(f"{name}.fit_predict", x, "x", ShapeError)
        scores = self.fit(rows, label).score(rows).double().cpu()
        threshold = scores[scores.isfinite()].quantile(1.0 - alpha, interpolation="lower")
        if not bool((scores > threshold).any()):
            warnings.warn(
                f"{name}.fit_predict marks no row: more than alpha={alpha} of the rows share the "
                f"highest score, {float(threshold):.4g}. If it is 0, each row may be its own "
                "nearest neighbour: raise k.",
                SondeWarning,
                stacklevel=2,
            )
        return np.where((scores > threshold).numpy(), -1, 1)

    @property
    def usual(self) -> Where:
        """Filter of the held-out calibration rows: all rows, or those not known to be unusual."""
        return Every()

    @abstractmethod
    def result(self, *_: Any, **states: Any) -> Scorer:
        """Return the fitted scorer."""


def score_needs(detector: Detector | Scorer) -> tuple[str, ...]:
    """Return the columns that scoring needs: the parameter names of ``score``.

    A detector says which scorer it makes in the return annotation of its ``result``.
    """
    if isinstance(detector, Scorer):
        return parameter_names(type(detector).score)
    scorer = get_type_hints(type(detector).result)["return"]
    return parameter_names(scorer.score)


def reads_rows(instrument: Instrument) -> bool:
    """Return whether the result depends on a site's rows, and not only on the logits."""
    needs = {n for read in instrument.all_reads().values() for n in read.statistic.needs()}
    if isinstance(instrument, Detector):
        needs.update(score_needs(instrument))
    return not needs.isdisjoint(("x", "y", "grad"))
