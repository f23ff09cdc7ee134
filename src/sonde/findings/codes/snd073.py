"""SND073: columns that are constant, copies of another column, or often missing."""

from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np

from sonde.findings.evidence.answers.best_probe import best_probe, own_score
from sonde.findings.evidence.inputs.input_table import InputTable, read_table
from sonde.findings.evidence.modules.fresh_weights import untrained_share
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import listed, number, percent, plural, shortened

SAME: Final = 1e-9
"""Largest fraction of a column's variance that its copy may leave unexplained."""
UNTRAINED: Final = 0.5
"""Fraction of layers that look untrained from which poor answers say nothing of the inputs."""


@dataclass(frozen=True)
class IdleColumns:
    """Columns without information: constant, copied, or often missing.

    Parameters
    ----------
    constant : tuple of int
        Columns of a single value.
    copies : tuple of (int, int, bool)
        A column, an earlier column that gives it, and whether both are equal in every row; else
        one is a multiple of the other plus a constant.
    missing : tuple of (int, float)
        A column and the share of the rows in which it has no number, largest share first.
    """

    constant: tuple[int, ...]
    copies: tuple[tuple[int, int, bool], ...]
    missing: tuple[tuple[int, float], ...]


def idle_columns(table: InputTable, least_missing: float) -> IdleColumns:
    """Return the columns that are constant, copies, or often missing."""
    columns = [table.known(j) for j in range(table.values.shape[1])]
    constant = [j for j, x in enumerate(columns) if len(x) and x.min() == x.max()]
    shares = [(j, table.missing.get(n, 0) / table.n_read) for j, n in enumerate(table.names)]
    missing = sorted((s for s in shares if s[1] >= least_missing), key=lambda s: (-s[1], s[0]))
    return IdleColumns(tuple(constant), _copies(table, set(constant)), tuple(missing))


def _copies(table: InputTable, left_out: set[int]) -> tuple[tuple[int, int, bool], ...]:
    """Return the columns that are functions of an earlier column, with that column.

    Columns of two values are compared for equality only: two answers to yes or no may agree.
    """
    x = table.values[np.isfinite(table.values).all(1)]
    chosen = [j for j in range(x.shape[1]) if j not in left_out]
    if len(x) < 3 or not chosen:
        return ()
    z = x[:, chosen] - x[:, chosen].mean(0)
    size = np.abs(z).max(0)
    z = z / np.where(size > 0, size, 1)
    norm = np.sqrt((z**2).sum(0))
    z = z / np.where(norm > 0, norm, 1)
    close = np.abs(z.T @ z) > 1 - 1e-6
    copies: list[tuple[int, int, bool]] = []
    for b in range(len(chosen)):
        for a in np.flatnonzero(close[:b, b]).tolist():
            sign = np.sign(z[:, a] @ z[:, b])
            if float(((z[:, b] - sign * z[:, a]) ** 2).sum()) > SAME:
                continue
            first, second = chosen[a], chosen[b]
            equal = bool((x[:, first] == x[:, second]).all())
            if equal or len(np.unique(x[:, second])) > 2:
                copies.append((second, first, equal))
                break
    return tuple(copies)


@final
@dataclass(frozen=True)
class SND073(Rule):
    """Columns that are constant or copies, and the largest fraction of missing numbers.

    Parameters
    ----------
    note, warning : float
        Fraction of the rows in which a column lacks a number.
    behind : float, default=0.2
        How much better than the model's a probe's answers are, in accuracy or R^2, for a constant
        column to be a warning.
    """

    note: float = 0.05
    warning: float = 0.2
    behind: float = 0.2

    title: ClassVar[str] = "Columns without new information"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("redundant columns",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "A constant column carries no information, and changes every answer once its value "
        "changes; a copied column counts twice in every distance; rows with a missing number "
        "are left out of every statistic."
    )
    fix: ClassVar[str] = (
        "Leave these columns out (--ignore-columns), or find where their numbers were lost."
    )
    how: ClassVar[str] = (
        "Over at most 20,000 rows (1,000 of wide tables), before any forward pass, three kinds "
        "are reported: columns with a single value; columns that are a linear function of an "
        "earlier column (equal in every row if they have two values), up to 1e-9 of their "
        "variance; and columns that lack a number in 5 % of the rows, including rows that were "
        "left out. A note; a warning if 20 % of the numbers are missing, or if a column is "
        "constant (at most a tenth of all are) and a probe of a layer or of the inputs answers "
        "better than the model by 20 points of accuracy, or of R^2 in percent: then the model "
        "may have learned with other values."
    )
    false_positives: ClassVar[str] = "Pixels at the edge of images, which are always empty."
    plant: ClassVar[str] = (
        "A constant column, and a temperature in Fahrenheit beside the same in Celsius."
    )
    twin: ClassVar[str] = "The same table without these columns."

    def check(self, evidence: Evidence) -> Check:
        """Compare every column with the others."""
        table = evidence.get(read_table)
        if not isinstance(table, InputTable):
            return self.not_applicable(table or "the inputs are not rows of a table")
        idle, n = idle_columns(table, self.note), len(table.names)
        share = idle.missing[0][1] if idle.missing else 0.0
        count = len({*idle.constant, *(c[0] for c in idle.copies)})
        figure = Figure("idle_columns", float(count), unit="columns", n_rows=len(table.values))
        if share >= self.note:
            figure = Figure("missing_share", share, unit="share", threshold=self.note,
                            n_rows=table.n_read)  # fmt: skip
        if not count and share < self.note:
            return self.clear(figure)
        few = 0 < len(idle.constant) <= max(1, n / 10)  # not the empty edge of pictures
        hint = _lost(evidence, self.behind) if few else ""
        return self.raised_with(
            "warning" if share >= self.warning or hint else "note",
            sentence(*_texts(table, idle), hint),
            figure,
            effect=max(count / n, share),
            common=share < self.note and not idle.copies and not hint,
            location=Location(columns=tuple(table.names[j] for j in idle.constant))
            if hint
            else None,
            next=read_command(evidence.sites[0].schema.key) if evidence.sites else None,
        )


def _lost(evidence: Evidence, least: float) -> str:
    """Return that the model answers far worse than a probe, which may be due to the constants."""
    probe, own = best_probe(evidence), own_score(evidence)
    if probe is None or own is None or probe.measure == "loss" or probe.mean - own < least:
        return ""
    if untrained_share(evidence) >= UNTRAINED:
        return ""
    if probe.measure == "accuracy":
        scores = f"The model is correct on {percent(own)}, a probe on {percent(probe.mean)}"
    else:
        scores = f"The model's R^2 is {number(own)}, that of a probe {number(probe.mean)}"
    return f"{scores}: it may have learned with other values of what is constant."


def _texts(table: InputTable, found: IdleColumns) -> list[str]:
    names = [shortened(name, 24) for name in table.names]
    texts: list[str] = []
    if found.missing:
        shares = [f"{names[j]} in {percent(share)}" for j, share in found.missing]
        texts.append(f"Numbers are missing: {listed(shares, 2)} of {plural(table.n_read, 'row')}.")
    if found.copies:
        shares = [
            f"{names[b]} {'equals' if equal else 'is a multiple (plus a constant) of'} {names[a]}"
            for b, a, equal in found.copies
        ]
        texts.append(f"{listed(shares, 2)}.")
    if found.constant:
        verb = "has" if len(found.constant) == 1 else "have"
        of = plural(len(table.values), "row")
        texts.append(
            f"{listed([names[j] for j in found.constant])} {verb} the same value in all {of}."
        )
    return texts
