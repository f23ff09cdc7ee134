"""The statistics that a scan computes in its one pass, and their conversion to evidence."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sonde.core.batch import SiteSchema
from sonde.core.errors import StateError
from sonde.core.instrument import SAMPLE, WIDEST_FULL, AsScored, Every, Subsample, Where, WithSinks
from sonde.core.plan import Part, Split
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.data.images import PICTURE_COLUMNS
from sonde.engine.passes import merge_pair
from sonde.engine.requests import Request, States
from sonde.findings.evidence.answer_counts import AnswerCounts, AnswerCountsState
from sonde.findings.evidence.record import AllRows, SiteEvidence
from sonde.stats import (
    ClassMoments,
    Extremes,
    GroupMeans,
    HashSample,
    HashSampleState,
    Moments,
    MomentsState,
    NeighbourSums,
    Scalars,
    ScalarsState,
    TokenNorms,
    UpdateMoments,
)
from sonde.tap.model.sites import ENTRY

SPLIT_ROLES = {"moments", "classes", "sample"}

SAMPLED_COLUMNS = (
    "label",
    "order",
    "logits",
    "perturbed_logits",
    "length",
    "padding",
    "truncated",
    "size",
    *PICTURE_COLUMNS,
    "constant",
)


@dataclass(frozen=True)
class ScanStatistics:
    """The statistics that a scan requests of a stream, by role and rows.

    Parameters
    ----------
    schema : tuple of SiteSchema
        Of the stream: pooled rows under the site's text, all rows under ``site|tokens``.
    columns : tuple of str
        Sampled columns that the stream brings.
    labelled, whole_groups : bool
        Whether there are labels, and whether units keep groups whole.
    split : Split or None
    """

    schema: tuple[SiteSchema, ...]
    columns: tuple[str, ...]
    labelled: bool
    whole_groups: bool
    split: Split | None = None

    @cached_property
    def pooled(self) -> list[SiteSchema]:
        """One entry per site."""
        return [s for s in self.schema if "|" not in s.key]

    @property
    def entry(self) -> SiteSchema | None:
        """Input of the first site, if the stream provides it."""
        return next((s for s in self.schema if s.key.endswith(f"|{ENTRY}")), None)

    def all_key(self, site: SiteSchema) -> str:
        """Return the key for all rows of a site: its tokens or patches, else its pooled rows."""
        prefix = f"{site.key}|"
        return next((s.key for s in self.schema if s.key.startswith(prefix)), site.key)

    @cached_property
    def roles(self) -> dict[tuple[str, str], tuple[Statistic[Any], tuple[str, ...], Where]]:
        """Return the statistic, the rows and the filter of each (role, site)."""
        roles: dict[tuple[str, str], tuple[Statistic[Any], tuple[str, ...], Where]] = {}
        before = self.entry
        if before is not None:
            first = self.pooled[0].key
            roles["all.received", first] = (Moments("diag"), (before.key,), Every())
        for site in self.pooled:
            for role, statistic in self._pooled_statistics(site).items():
                roles[role, site.key] = (statistic, (site.key,), Every())
            key = self.all_key(site)
            roles["all.scalars", site.key] = (Scalars(), (key,), WithSinks())
            roles["all.norms", site.key] = (TokenNorms(), (key,), WithSinks())
            roles["all.extremes", site.key] = (Extremes(), (key,), WithSinks())
            if key != site.key:
                full = Moments("full" if site.dim <= WIDEST_FULL else "diag")
                roles["all.eighth", site.key] = (full, (key,), Subsample())
                roles["all.groups", site.key] = (GroupMeans(), (key,), Every())
            if before is not None and before.dim == site.dim and before.axes == site.axes:
                pair = (self.all_key(before), key)
                roles["all.update", site.key] = (UpdateMoments(), pair, Every())
            before = site
        first = self.pooled[0].key
        for column in self.columns:
            roles[f"column.{column}", first] = (
                HashSample(SAMPLE, column=column),
                (first,),
                Every(),
            )
        if self.labelled and "logits" in self.columns:
            roles["answers", first] = (AnswerCounts(), (first,), AsScored())
        return roles

    def _pooled_statistics(self, site: SiteSchema) -> dict[str, Statistic[Any]]:
        wide = site.dim > WIDEST_FULL
        statistics: dict[str, Statistic[Any]] = {
            "scalars": Scalars(),
            "sample": HashSample(SAMPLE),
        }
        if self.labelled:
            statistics["classes"] = ClassMoments("diag" if wide else "pooled")
        else:
            statistics["moments"] = Moments("diag" if wide else "full")
        if self.whole_groups:
            statistics["neighbours"] = NeighbourSums()
        return statistics

    def _requests(self, role: str, site: str) -> list[Request]:
        """Return a role's requests; roles shared with detectors are split into parts."""
        statistic, keys, where = self.roles[role, site]
        parts: tuple[Part, ...] = ("all",)
        if self.split is not None and role in SPLIT_ROLES:
            parts = ("fit", "held")
        return [Request(statistic, keys, where, part) for part in parts]

    def requests(self) -> dict[str, Request]:
        """Return every request by id."""
        by_id = {r.id: r for name in self.roles for r in self._requests(*name)}
        return dict(sorted(by_id.items()))

    def state(self, role: str, site: str, states: States) -> Any:
        """Return the state of a role at a site over all rows, or None if it saw no row."""
        if (role, site) not in self.roles:
            return None
        merged = None
        for request in self._requests(role, site):
            merged = merge_pair(request.statistic, merged, states.get(request.id))
        return merged

    def sites(self, states: States, counters: dict[str, int]) -> tuple[SiteEvidence, ...]:
        """Return the evidence of every site that saw at least one finite row."""
        read = [self._site(schema, states, counters) for schema in self.pooled]
        return tuple(s for s in read if s is not None)

    def _site(
        self, schema: SiteSchema, states: States, counters: dict[str, int]
    ) -> SiteEvidence | None:
        def state(role: str) -> Any:
            return self.state(role, schema.key, states)

        classes, sample, moments = state("classes"), state("sample"), state("moments")
        every, key = state("all.scalars"), self.all_key(schema)
        if sample is None or every is None:
            return None
        if moments is None:
            if classes is None:
                raise StateError(f"scan: no moments at {schema.key}.")
            moments = classes.total
        bad = {k: counters.get(f"nonfinite|{k}", 0) for k in {schema.key, key}}
        return SiteEvidence(
            schema=schema,
            n_rows=counters.get(f"rows|{schema.key}", 0),
            n_nonfinite=max(bad.values()),
            moments=moments,
            classes=classes,
            scalars=state("scalars"),
            sample=sample,
            neighbours=state("neighbours"),
            all=AllRows(
                key=key,
                moments=_diagonal(every),
                scalars=every,
                norms=state("all.norms"),
                extremes=state("all.extremes"),
                eighth=state("all.eighth"),
                groups=state("all.groups"),
                update=state("all.update"),
                received=self._received(schema, states),
            ),
        )

    def _received(self, site: SiteSchema, states: States) -> MomentsState | None:
        place = self.pooled.index(site)
        if place == 0:
            return self.state("all.received", site.key, states)
        every = self.state("all.scalars", self.pooled[place - 1].key, states)
        return None if every is None else _diagonal(every)

    def answer_counts(self, states: States) -> AnswerCountsState | None:
        """Return the counts of correct answers over all rows, if there are labels and logits."""
        return self.state("answers", self.pooled[0].key, states)

    def sampled_columns(self, states: States) -> dict[str, HashSampleState]:
        """Return the sampled columns at the first site."""
        first = self.pooled[0].key
        columns = {c: self.state(f"column.{c}", first, states) for c in self.columns}
        return {c: s for c, s in columns.items() if s is not None}


def _diagonal(every: ScalarsState) -> MomentsState:
    return MomentsState(every.n, every.mean, every.scatter)


def scan_statistics(
    stream: Stream,
    columns: Collection[str],
    labelled: bool,
    split: Split | None = None,
    whole_groups: bool = True,
) -> ScanStatistics:
    """Return the requests of a scan for a stream that provides these columns."""
    return ScanStatistics(
        schema=stream.schema,
        columns=tuple(c for c in SAMPLED_COLUMNS if c in columns),
        labelled=labelled,
        whole_groups=whole_groups,
        split=split,
    )
