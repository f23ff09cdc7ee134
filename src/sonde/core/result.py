"""Results: a number with its error, null, unit and conventions, as a table or a chart."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core._kinds import is_list, is_tuple
from sonde.core._shown import OneLine, as_html, one_line
from sonde.core.autocast import without_autocast
from sonde.core.chart import Chart, ChartAxis, curves, marks
from sonde.core.columns import declared
from sonde.core.errors import ShapeError
from sonde.core.finite import finite_rows, is_finite
from sonde.core.reduction import Reduced, reduce_scores
from sonde.core.state import leaves, map_tensors
from sonde.core.statistic import parameter_names
from sonde.core.tensors import as_tensor, device_of, on_device

Direction = Literal["higher", "lower", "none"]

FLAGS: dict[str, str] = {
    "low_precision": "rounding of the rows reaches the last digits of the value",
    "lost_precision": "rounding of the rows dominates the value, or their products are too small "
    "for float64",
    "few_rows": "too few rows (groups): at most as many as dimensions, or hardly any of one kind",
    "many_neighbours": "more neighbours than half of the fitted rows of a class (of ten classes, "
    "if the method does not know them): the neighbours of most rows come from other classes, so "
    "in-distribution rows look anomalous. Lower k, or fit more rows",
    "few_groups": "fewer than 8 independent groups of rows: the standard error is widened by "
    "Student's t, and is itself uncertain",
    "heavy_tails": "fewer than 4 effective rows (groups) have the variance, or rows have heavy "
    "tails and are too few for effects so skewed: the standard error may be too small",
    "deterministic": "the value grows with the number of rows as if one side were a function of "
    "the other: a lower bound of information that may be infinite",
    "narrow_kernel": "the kernel is so narrow that hardly two rows are alike: the value is noise",
    "divided_groups": "some groups (persons, documents) have rows in several parts: noise that "
    "these parts share is counted as distance. Give each group to one part",
    "rank_deficient": "some directions have no variance in these rows",
    "high_dim": "more dimensions than the estimator is known to bear",
    "saturated": "the estimator is at its upper limit",
    "clipped": "part of the data lay outside the estimator's range",
    "coarse": (
        "the standard deviation is below the width of a bin, so changes inside a bin are not "
        "detected"
    ),
    "dead": "constant rows or units (or standard deviations below 1e-162): their value is not "
    "defined",
    "copies": "equal or nearly equal rows: they count as one group, or are not used as each "
    "other's neighbours; under different names they are neighbours",
    "dead_features": "more than 5 % of the features are active in no row",
    "massive_units": "units with over ten times the standard deviation of others: they dominate "
    "the result, or were scaled down",
    "sinks": "tokens with massive states were left out: with them the value would move by a tenth "
    "or more (conventions, with sinks)",
    "unlabelled": "rows without a label were left out",
    "nonfinite": "rows with NaN, infinity or numbers too large to square were left out",
    "rough_merge": "parts that were fitted separately and merged give other scores than one pass",
    "sampled": "computed from a sample of the rows",
    "paired": "the same rows on both sides, and no sample of them to compare one by one",
    "incomplete": "the parts miss more than 5 % of the whole: take more steps, or another baseline "
    "(Baseline.fit: the mean of a data set)",
    "held_inputs": (
        "the model also reads integers that were not varied: their contribution is not explained"
    ),
    "unused": "the objective does not depend on this site, or no gradient reaches it: parts are 0",
    "diverged": (
        "training met numbers that are not finite: the weights are those from before that step"
    ),
    "one_block": "one block makes half of all contributions or more",
    "whole_blocks": "some blocks are not the sum of their input and their sublayers",
    "se_first_order": "the standard error is first-order and known to be poor here",
}


@dataclass(frozen=True, kw_only=True)
class Result(OneLine):
    """The result of an instrument.

    Parameters
    ----------
    value : float or Tensor
        The figure. Never clamped into its nominal range; NaN only together with a flag.
    se : float, Tensor or None
        Standard error; None if no valid standard error is known (``conventions["se"]`` says why).
    null : float, Tensor or None
        Expectation of the same estimator when there is nothing to see.
    n : int
        Rows, or groups where rows come in groups.
    unit : str
        Unit of the value; empty for a plain number. Information is in ``nats``.
    direction : {"higher", "lower", "none"}
        Which end means more of what the method is named after.
    range : (float, float)
        Nominal range of the value.
    flags : tuple of str
        Subset of ``FLAGS``.
    conventions : dict
        Choices that another implementation could have made otherwise.
    """

    value: float | Tensor = math.nan
    se: float | Tensor | None = None
    null: float | Tensor | None = None
    n: int = 0
    unit: str = ""
    direction: Direction = "none"
    range: tuple[float, float] = (-math.inf, math.inf)
    flags: tuple[str, ...] = ()
    conventions: dict[str, Any] = field(default_factory=dict[str, Any])

    title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        unknown = set(self.flags) - set(FLAGS)
        if unknown:
            raise ValueError(f"{type(self).__name__}: unknown flags {sorted(unknown)}")

    def __repr__(self) -> str:
        return one_line(self)

    def __float__(self) -> float:
        return float(self.value)

    def bits(self) -> "Result":
        """Return the value converted to bits.

        Raises
        ------
        ValueError
            If the value is not in nats.
        """
        if self.unit != "nats":
            raise ValueError(f"{type(self).__name__}.bits: expected nats, got {self.unit!r}.")
        scale = 1.0 / math.log(2.0)
        return replace(
            self,
            value=self.value * scale,
            se=None if self.se is None else self.se * scale,
            null=None if self.null is None else self.null * scale,
            range=(self.range[0] * scale, self.range[1] * scale),
            unit="bits",
        )

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return the values as a table: a row for each element, with value, se and null."""
        value = _column(self.value)
        columns: dict[str, Any] = {"value": value}
        for name in ("se", "null"):
            column = getattr(self, name)
            if column is not None:
                numbers = _column(column)
                columns[name] = numbers * len(value) if len(numbers) == 1 else numbers
        return pa.table(columns)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def chart(self) -> Chart:
        """Return the table as a chart: a Vega-Lite dict, made with ``sonde.core.chart``."""
        rows = cast("list[dict[str, float]]", self.table().to_pylist())  # pyright: ignore[reportUnknownMemberType]
        numbered = [{"index": i, **row} for i, row in enumerate(rows)]
        title, y = self.title or type(self).__name__, ChartAxis("value", title=self.unit or "value")
        return (curves if len(rows) > 1 else marks)(title, numbered, "index", y)

    @classmethod
    def over_training(cls, found: Iterable[tuple[int, str, "Result"]]) -> Chart | None:
        """Return a chart of results over training, or None to draw curves of values.

        Parameters
        ----------
        found : iterable of (step, site, result)
            Results of this class, step by step.

        Returns
        -------
        dict or None
            None, the default, if a curve of each value is enough.
        """
        return None

    def _repr_mimebundle_(
        self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return {
            "text/plain": repr(self),
            "text/html": as_html(self, self.table(), FLAGS),  # pyright: ignore[reportUnknownMemberType]
            "application/vnd.vegalite.v5+json": self.chart(),
        }


@dataclass(frozen=True, kw_only=True)
class Scorer(Result):
    """The result of a detector: scores rows, higher = more unusual.

    The parameter names of ``score`` are the columns that scoring needs: tensors, arrays, frames or
    nested lists. A row's score never depends on the other rows of its batch; a row that is not
    finite scores ``+inf``. Scores are made, and lie, on the device of the first column.
    """

    direction: Direction = "higher"

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name in ("score", "contributions"):
            if name in cls.__dict__:
                setattr(cls, name, _of_arrays(cls.__dict__[name]))

    @functools.cached_property
    def devices(self) -> frozenset[torch.device]:
        """Devices of the scorer's tensors."""
        return frozenset(tensor.device for tensor in leaves(self))

    @functools.cached_property
    def copies(self) -> dict[torch.device, "Scorer"]:
        """Cached copies of the scorer on other devices; not pickled."""
        return {}

    @property
    def n_places(self) -> int | None:
        """Number of positions that every example must have; None for any number."""
        return None

    @property
    def squared_distance(self) -> "tuple[Float[Tensor, 'dim'], Float[Tensor, 'dim rank']] | None":
        """The mean and the root ``R`` if the score is ``|(x - mean) R|^2``, else None.

        The scores of several sites of this form are computed in one product.
        """
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "copies"}

    @property
    def needs_double(self) -> bool:
        """True if float32 tensors would change the scores visibly."""
        return False

    def score(self, *columns: Any, **_: Any) -> Float[Tensor, "row"]:
        """Return a score for each row."""
        raise NotImplementedError

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return a score for each example, from the scores of its rows.

        A method with its own score of an example (``Detector.reduces``) makes that score here if
        ``how`` is ``"own"``; ``columns`` are the columns that ``score`` took.
        """
        return reduce_scores(scores, example, how)

    def contributions(self, *columns: Any, **_: Any) -> Float[Tensor, "row dim"] | None:
        """Return the non-negative contribution of each unit to the score of each row.

        None if the method cannot split its score. ``columns`` are those that ``score`` takes.
        """
        return None


def _of_arrays(score: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a scorer so that it takes arrays as ``fit`` does, but no single vector.

    Rows, other columns of floats and the scorer are brought to one device, that of the rows; inside
    autocast they keep their types.
    """
    names = parameter_names(score)
    first = next(iter(names), "")

    @functools.wraps(score)
    def scored(self: Scorer, *columns: Any, **named: Any) -> Any:
        owner = f"{type(self).__name__}.{score.__name__}"
        named = {name: _as_column(owner, c, name) for name, c in named.items()}
        labels = itertools.chain(names, itertools.repeat(""))
        columns = tuple(map(_as_column, itertools.repeat(owner), columns, labels))
        x = columns[0] if columns else named.get(first)
        if first == "x" and isinstance(x, Tensor) and x.ndim != 2:
            raise ShapeError(
                f"{owner}: expected rows (row, dim), got shape "
                f"{tuple(x.shape)}. Write x[None] for one row."
            )
        device = device_of(x) if first else None
        if device is None:
            return score(self, *columns, **named)
        columns = tuple(on_device(c, device) for c in columns)
        named = {name: on_device(c, device) for name, c in named.items()}
        with without_autocast(device):
            return score(_placed(self, device), *columns, **named)

    return scored


def _placed(scorer: Scorer, device: torch.device) -> Scorer:
    """Return a scorer with its tensors on a device: itself, or its cached copy."""
    if scorer.devices <= {device}:
        return scorer
    if device not in scorer.copies:
        scorer.copies[device] = map_tensors(scorer, lambda tensor: tensor.to(device))
    return scorer.copies[device]


def _as_column(owner: str, values: Any, name: str) -> Any:
    """Return an array, a frame or a list as a tensor; for many sites, one tensor each."""
    several = is_tuple(values) or is_list(values)
    if several and values and all(getattr(v, "ndim", 0) > 1 for v in values):
        return type(values)(_as_column(owner, rows, name) for rows in values)
    if not (is_list(values) or hasattr(values, "__array__")):
        return values
    column = as_tensor(owner, values, "rows", ShapeError)
    is_float = declared(name).kind == "float"
    return column.double() if is_float and not column.is_floating_point() else column


def infinite_where_nonfinite(
    score: Float[Tensor, "row"],
    *columns: Float[Tensor, "row _"],
    logits: Float[Tensor, "row _"] | None = None,
) -> Float[Tensor, "row"]:
    """Return the scores, with ``+inf`` for rows that are not finite in a column.

    Masked logits hold the lowest number of their type, and logits are never squared: only a NaN or
    infinity counts in them. A finite row whose score overflows to NaN gets ``+inf`` too.

    Parameters
    ----------
    score : Float[Tensor, "row"]
        Score of each row.
    *columns
        Columns that the score was computed from.
    logits : Float[Tensor, 'row _'], optional
        Logits that the score was computed from, if any.
    """
    lost = score.isnan()
    for column in columns:
        if not is_finite(column):
            lost = lost | ~finite_rows(column)
    if logits is not None and not bool(torch.isfinite(logits.sum(dim=1)).all()):
        lost = lost | ~torch.isfinite(logits).all(dim=1)
    return score.masked_fill(lost, math.inf) if bool(lost.any()) else score


def _column(value: float | Tensor) -> list[float]:
    numbers = torch.as_tensor(value).detach().double().reshape(-1)
    return cast("list[float]", numbers.tolist())  # pyright: ignore[reportUnknownMemberType]
