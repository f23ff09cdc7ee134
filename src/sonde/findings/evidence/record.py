"""What the rules read: states of one pass by site, and further facts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.batch import SiteSchema
from sonde.findings.trial_budget import TrialBudget, unlimited
from sonde.stats import (
    ClassMomentsState,
    ExtremesState,
    GroupMeansState,
    HashSampleState,
    MomentsState,
    NeighbourSumsState,
    ScalarsState,
    TokenNormsState,
)
from sonde.tap import LiveStream


@dataclass(frozen=True, eq=False)
class AllRows:
    """Statistics of all tokens or patches of a site, or of its pooled rows if it has neither.

    Parameters
    ----------
    key : str
        The rows' key in the stream.
    moments : MomentsState
        Diagonal.
    scalars : ScalarsState
        Per unit: minimum, maximum, zeros.
    norms : TokenNormsState
        Row norms, by first position, special tokens, and the rest.
    extremes : ExtremesState
        Largest entries of each unit and the rows that hold the largest of all.
    eighth : MomentsState or None
        Full moments of an eighth of the rows; None if rows are pooled.
    groups : GroupMeansState or None
        Variance of the examples' means, against the variance of the rows.
    update, received : MomentsState or None
        Diagonal moments of the change since the previous site, if the widths agree, and of the
        previous site's rows. For the first site, its input stands for the previous site.
    """

    key: str
    moments: MomentsState
    scalars: ScalarsState
    norms: TokenNormsState
    extremes: ExtremesState
    eighth: MomentsState | None = None
    groups: GroupMeansState | None = None
    update: MomentsState | None = None
    received: MomentsState | None = None


@dataclass(frozen=True, eq=False)
class SiteEvidence:
    """Everything that one pass gathered at one site.

    Parameters
    ----------
    schema : SiteSchema
    n_rows, n_nonfinite : int
        Pooled rows that arrived; non-finite rows among the pooled or all rows, whichever are more.
    moments : MomentsState
        Pooled rows; diagonal above dim 2,048.
    classes : ClassMomentsState or None
        The same by label; None without labels.
    scalars : ScalarsState
        Per unit over pooled rows.
    sample : HashSampleState
        At most 2,048 pooled rows, the same ones at every site.
    neighbours : NeighbourSumsState or None
        Squared steps between rows that follow one another in the file.
    all : AllRows
    """

    schema: SiteSchema
    n_rows: int
    n_nonfinite: int
    moments: MomentsState
    classes: ClassMomentsState | None
    scalars: ScalarsState
    sample: HashSampleState
    neighbours: NeighbourSumsState | None
    all: AllRows

    @property
    def name(self) -> str:
        """The site's text without the default port, as printed in reports."""
        return self.schema.key.removesuffix(":out")

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.schema.dim

    @property
    def is_wide(self) -> bool:
        """True if the moments hold only variances; rules on directions then use the sample."""
        return self.moments.scatter.ndim == 1

    @cached_property
    def alive(self) -> Bool[Tensor, "dim"]:
        """Units that vary over the pooled rows."""
        return self.moments.variance > 0


@dataclass(frozen=True, eq=False)
class DataEvidence:
    """Listing of one data set; one entry per example in planned order.

    Parameters
    ----------
    name, fingerprint : str
        As typed, and the hash of its content.
    ids, keys, group_keys : sequences
        Printable ids, hashes of the inputs alone, group keys.
    grouped : bool
        Whether a group column was given or texts were cut into chunks.
    label : Int[Tensor, "example"]
        Class numbers; -1 = none.
    label_names : tuple of str or None
        Names by class number.
    labels_are_models : bool
        Whether the labels are the model's own classes.
    target : Float[Tensor, "example"] or None
        Numbers of a label column that a regression should give; NaN = none.
    missing : mapping or None
        In how many of how many ``rows`` each of the ``columns`` of numbers has no value.
    n_truncated, n_tokens_cut, n_tokens, n_skipped : int
        Examples cut at the context, tokens lost, tokens read, broken items left out.
    sample_of : int or None
        Number of items that were sampled over the classes, if a limit did so.
    seed : int
        Key of the hash of rows.
    piece, size : Int[Tensor, "example"] or None
        Which chunk of its item an example is (None: every example is an item), and the bytes of
        that item (None: not known, as of arrays).
    own_columns : callable or None
        Gives the columns of examples that are no input, label, id or group, by name.
    key_columns : callable or None
        Gives the columns that can name a row: inputs and ids too.
    inputs : tuple of str
        Names of the columns that the model is given.
    by_name : bool
        Whether files are read in the order of their names.
    place : callable or None
        Gives where an example stands in the data: a file, a line, a number.
    """

    name: str
    fingerprint: str
    ids: Any
    keys: Any
    group_keys: Any
    grouped: bool
    label: Int[Tensor, "example"]
    label_names: tuple[str, ...] | None = None
    labels_are_models: bool = False
    target: Float[Tensor, "example"] | None = None
    missing: Mapping[str, Any] | None = None
    n_truncated: int = 0
    n_tokens_cut: int = 0
    n_tokens: int = 0
    n_skipped: int = 0
    limited: bool = False
    sample_of: int | None = None
    by_name: bool = False
    place: Callable[[int], str] | None = None
    seed: int = 0
    piece: Int[Tensor, "example"] | None = None
    size: Int[Tensor, "example"] | None = None
    own_columns: Callable[[Sequence[int]], Mapping[str, Sequence[Any]]] | None = None
    key_columns: Callable[[Sequence[int]], Mapping[str, Sequence[Any]]] | None = None
    inputs: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.label)

    @cached_property
    def n_groups(self) -> int:
        """Number of distinct groups."""
        return len(set(self.group_keys))

    @cached_property
    def has_labels(self) -> bool:
        """True if any example has a label."""
        return bool((self.label >= 0).any())


T = TypeVar("T")
Gatherer = Callable[[LiveStream, "Evidence"], T]
"""Computes a part of the evidence by forward passes beside the one over the data."""


class EvidenceParts:
    """Parts of the evidence, each computed at the first request and then kept.

    Parameters
    ----------
    stream : LiveStream or None
        The model and its data; without it, every part that is not known is None.
    known : mapping of function to object
        Parts that are there already, by the function that computes them.
    only : collection of functions or None
        Parts that may be computed; None allows all.
    cut : bool
        Whether Ctrl-C keeps further parts from being computed.

    Attributes
    ----------
    missed : set of functions
        Parts that were asked for after Ctrl-C.
    """

    def __init__(
        self,
        stream: LiveStream | None = None,
        known: Mapping[Gatherer[Any], Any] = MappingProxyType({}),
        only: Collection[Gatherer[Any]] | None = None,
        cut: bool = False,
    ) -> None:
        self._stream, self._known = stream, dict(known)
        self._only, self._cut = only, cut
        self._failed: dict[Gatherer[Any], Exception] = {}
        self.missed: set[Gatherer[Any]] = set()

    def get(self, part: Gatherer[T], evidence: "Evidence") -> T | None:
        """Return a part; an error while computing it is raised at every request."""
        if part in self._failed:
            raise self._failed[part]
        if part not in self._known and self._stream is not None:
            if self._cut:
                self.missed.add(part)
            elif self._only is None or part in self._only:
                try:
                    with torch.enable_grad():  # rules run without gradients, parts as anywhere
                        self._known[part] = part(self._stream, evidence)
                except Exception as error:
                    self._failed[part] = error
                    raise
        return self._known.get(part)

    def ask(self, parts: Collection[Gatherer[Any]], evidence: "Evidence") -> None:
        """Compute these parts now."""
        for part in parts:
            self.get(part, evidence)

    def having(self, known: Mapping[Gatherer[Any], Any]) -> "EvidenceParts":
        """Return a copy with some parts replaced."""
        parts = EvidenceParts(self._stream, {**self._known, **known}, self._only, self._cut)
        parts.missed = self.missed
        return parts

    def stop(self) -> None:
        """Compute no further parts: parts that were not requested yet are None from now on."""
        self._stream = None
        self._failed = {}


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the rules may read.

    Parameters
    ----------
    sites : tuple of SiteEvidence
        In order of execution.
    columns : dict of str to HashSampleState
        Columns of the sampled pooled rows at the first site, if the stream has them: label, order,
        logits, perturbed_logits, length, padding, truncated, size, brightness, constant.
    data : DataEvidence
    answer_counts : AnswerCountsState or None
        Correct answers among all rows with a label; None without logits or labels.
    counters : dict
        ``rows|key``, ``nonfinite|key``, ``examples``.
    gathered : EvidenceParts
        Parts that take forward passes beside the one over the data; see ``get``.
    budget : TrialBudget
        Budget of the trials; unlimited if no live model is scanned.
    versus : VersusEvidence or None
        Comparison with OTHER.
    stochastic, deep : bool, default=False
        Whether the model draws random numbers by design, and whether costly checks were asked for.
    fail_on : collection of str
        Codes that fail the gate.
    awaited : str
        Why OTHER was not read although it was given.
    checks : sequence of Check
        Checks of all other rules, for the rule that lists the withheld checks.
    reference : Reference or None
        Scores of answers that the user knows to be healthy.
    """

    sites: tuple[SiteEvidence, ...]
    columns: Mapping[str, HashSampleState]
    data: DataEvidence
    counters: Mapping[str, int]
    gathered: EvidenceParts = field(default_factory=EvidenceParts)
    budget: TrialBudget = field(default_factory=unlimited)
    answer_counts: Any = None
    versus: Any = None
    stochastic: bool = False
    deep: bool = False
    fail_on: Collection[str] = ()
    awaited: str = ""
    checks: Sequence[Any] = ()
    reference: Any = None

    def get(self, part: Gatherer[T]) -> T | None:
        """Return a part of the evidence by the function that computes it; None without a model."""
        return self.gathered.get(part, self)

    def having(self, known: Mapping[Gatherer[Any], Any]) -> "Evidence":
        """Return this evidence with some parts replaced."""
        return replace(self, gathered=self.gathered.having(known))

    @cached_property
    def _rank(self) -> dict[str, dict[int, int]]:
        return {
            name: {d: i for i, d in enumerate(sample.draw.tolist())}
            for name, sample in self.columns.items()
        }

    def column(self, name: str, site: SiteEvidence) -> Tensor | None:
        """Return a column of the sampled rows of a site, in the order of ``site.sample``.

        ``group`` and ``draw`` are in the sample itself. None if the stream lacks the column.
        """
        sample = self.columns.get(name)
        if sample is None:
            return None
        rank = self._rank[name]
        index = [rank.get(d, -1) for d in site.sample.draw.tolist()]
        if any(i < 0 for i in index):
            return None
        return sample.rows[torch.tensor(index, dtype=torch.int64)]

    def ids_of(self, order: Int[Tensor, "row"]) -> list[str]:
        """Return the printable ids of examples by their index in the planned order."""
        return [self.data.ids[i] for i in order.tolist()]

    @property
    def n_groups(self) -> int:
        """Number of groups, which is the number of independent rows."""
        return self.data.n_groups


def rows_as_float(sample: HashSampleState) -> Float[Tensor, "row dim"]:
    """Return sampled rows in float64 on the CPU."""
    return sample.rows.detach().cpu().double()


def as_array(sample: HashSampleState) -> np.ndarray:
    """Return sampled rows as a numpy array of float64."""
    return rows_as_float(sample).numpy()
