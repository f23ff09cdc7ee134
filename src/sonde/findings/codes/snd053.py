"""SND053: identical or nearly identical inputs in DATA and OTHER."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.evidence.inputs.near_pairs import NearPairs, near_pairs
from sonde.findings.evidence.inputs.unusual_rows import (
    NEAR_NEEDS,
    first_pieces,
    last_token_lengths,
    near_duplicates,
)
from sonde.findings.evidence.record import DataEvidence, Evidence
from sonde.findings.evidence.shared_rows import examples_at, shared_rows
from sonde.findings.evidence.versus.label_comparison import SharedContent, shared_content
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, two_names
from sonde.findings.words.text import number, percent, plural

SHORT_BYTES = 16


@dataclass(frozen=True)
class _Leak:
    """Examples of OTHER that also occur in DATA: equal, short and equal, or nearly equal."""

    n: int
    exact: tuple[int, ...]
    short: tuple[int, ...]
    near: tuple[int, ...]
    ratios: tuple[float, ...]
    partners: dict[int, int]
    site: str
    p: float

    @property
    def share(self) -> float:
        return len(self.exact) / max(self.n, 1)


@final
@dataclass(frozen=True)
class SND053(Rule):
    """Inputs of OTHER whose content, or whose state, also occurs in DATA."""

    warning: float = 0.001
    least: float = 3.0
    level: float = 0.001

    title: ClassVar[str] = "Look-alikes in DATA and OTHER"
    theme: ClassVar[Theme] = "versus"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shared rows",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "If one set is the training set and the other the test set, these inputs test only what "
        "the model has memorised."
    )
    fix: ClassVar[str] = (
        "Remove from one set the rows that also occur in the other (the command lists them), and "
        "test "
        "again."
    )
    how: ClassVar[str] = (
        "Exact: inputs of OTHER whose 16-byte content hash also occurs in DATA; inputs below 16 "
        "bytes are counted separately. Near: sampled rows of OTHER whose nearest row of DATA is "
        "nearer than eps times the distance of their fifth nearest, at the sites of SND042, "
        "with the dimension of DATA's rows. Any equal input is a note; 0.1 % of OTHER, or 3 "
        "near pairs with p below 0.001, are a warning."
    )
    false_positives: ClassVar[str] = "Short or categorical inputs, which coincide by chance."
    plant: ClassVar[str] = "1 % of the training rows are copied into the test data."
    twin: ClassVar[str] = "A clean split."

    def check(self, evidence: Evidence) -> Check:
        """Intersect the contents, then search for near pairs."""
        if evidence.versus is None:
            return self.not_applicable("there is no second data set (--versus OTHER)")
        leak = self._leak(evidence)
        near = len(leak.near) >= self.least and leak.p < self.level
        figure = Figure(
            "shared_share",
            leak.share,
            unit="share",
            null=0.0,
            threshold=self.warning,
            p=leak.p if leak.near else None,
            n_rows=leak.n,
        )
        if not leak.exact and not leak.short and not near:
            few = min(evidence.n_groups, evidence.versus.other.n_groups) < NEAR_NEEDS
            reason = f"near pairs need {NEAR_NEEDS} rows on each side" if few else ""
            return self.clear(figure, reason)
        severe = leak.share >= self.warning or near
        examples = (*leak.exact, *(leak.near if near else ()), *leak.short)
        ratio = dict(zip(leak.near, leak.ratios, strict=True))
        return self.raised_with(
            "warning" if severe else "note",
            self._sentence(evidence, leak, near),
            figure,
            sites=(leak.site,) if near else (),
            examples=examples,
            figures=tuple(ratio.get(i, 0.0) for i in examples),
            partners=tuple(leak.partners[i] for i in examples),
            of_other=True,
            effect=min(1.0, leak.share + len(leak.near) / max(leak.n, 1)),
            next=rows_command(self.code, versus=True),
        )

    def _leak(self, evidence: Evidence) -> _Leak:
        other = evidence.versus.other_data
        first_of = {evidence.data.keys[i]: i for i in reversed(list(first_pieces(evidence.data)))}
        items = first_pieces(other)
        shared = [i for i in items if other.keys[i] in first_of]
        short = {i for i in shared if _is_short(other, i)}
        site, pairs = _near(evidence, set(first_of))
        rows: tuple[int, ...] = ()
        if pairs is not None:
            order = shared_rows(evidence.versus.other).order
            assert order is not None
            rows = tuple(order[pairs.row].tolist())
        partners = {i: first_of[other.keys[i]] for i in shared}
        if pairs is not None:
            partners |= dict(zip(rows, examples_at(evidence, pairs.partner.tolist()), strict=True))
        return _Leak(
            n=len(items),
            exact=tuple(i for i in shared if i not in short),
            short=tuple(sorted(short)),
            near=rows,
            ratios=() if pairs is None else tuple(pairs.ratio.tolist()),
            partners=partners,
            site=site,
            p=1.0 if pairs is None else min(1.0, 2 * pairs.p),
        )

    def _sentence(self, evidence: Evidence, leak: _Leak, near: bool) -> str:
        parts, (own, theirs) = [], two_names(evidence)
        if leak.exact:
            parts.append(_copies(shared_content(evidence), leak, own, theirs))
        if near:
            chance = "below 1e-12" if leak.p < 1e-12 else number(leak.p, 1)
            parts.append(
                f"{plural(len(leak.near), 'more row')} of {theirs} are near-copies of rows of "
                f"{own} (p = {chance})."
            )
        if leak.short:
            parts.append(
                f"{plural(len(leak.short), 'shared input')} below 16 bytes (counted separately)."
            )
        return " ".join(parts)


def _copies(same: SharedContent, leak: _Leak, mine: str, theirs: str) -> str:
    """Return the number of copies, on the side where they are the larger fraction."""
    n, of, name, elsewhere = len(leak.exact), leak.n, theirs, mine
    if same.mine * same.n_theirs > same.theirs * same.n_mine:
        n, of, name, elsewhere = same.mine, same.n_mine, mine, theirs
    are = "also occurs" if n == 1 else "also occur"
    share = percent(n / of)
    return (
        f"{n:,} of {plural(of, 'input')} of {name} ({share}) {are} in {elsewhere}, byte for byte."
    )


def _is_short(data: DataEvidence, i: int) -> bool:
    return data.size is not None and 0 < int(data.size[i]) < SHORT_BYTES


def _near(evidence: Evidence, mine: set[bytes]) -> tuple[str, NearPairs | None]:
    """Return the site whose near pairs of OTHER and DATA are least probable by chance.

    Inputs of OTHER that DATA has too are left out.
    """
    theirs, own = shared_rows(evidence.versus.other), shared_rows(evidence)
    order = theirs.order
    if order is None or min(len(own.group), len(theirs.group)) < NEAR_NEEDS:
        return "", None
    keys = evidence.versus.other_data.keys
    fresh = torch.tensor([keys[i] not in mine for i in order.tolist()])
    if not bool(fresh.any()):
        return "", None
    there = [s.schema.key for s in theirs.evidence.sites]
    lengths = last_token_lengths(theirs)
    both = None if lengths is None else (lengths[fresh], last_token_lengths(own))
    ends = {
        i: (theirs.x(there.index(key))[fresh], own.x(i))
        for i in near_duplicates(evidence)
        if (key := evidence.sites[i].schema.key) in there
    }
    pairs_at: list[tuple[str, NearPairs]] = []
    for i, (y, x) in ends.items():
        dim = near_duplicates(evidence)[i].dim
        far = next((rows for j, rows in ends.items() if j > i), None)
        how = {"dim": dim, "lengths": both, "elsewhere": far}
        pairs = near_pairs(y, theirs.group[fresh], x, own.group, **how)
        rows = torch.nonzero(fresh).flatten()[pairs.row]
        pairs_at.append((evidence.sites[i].schema.key, NearPairs(**{**vars(pairs), "row": rows})))
    return min(pairs_at, key=lambda f: (f[1].p, -len(f[1]))) if pairs_at else ("", None)
