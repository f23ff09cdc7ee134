"""Columns of tables and measures of texts that differ between DATA and OTHER."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import fisher_exact, ks_2samp, mannwhitneyu

from sonde.data.images import PICTURE_COLUMNS
from sonde.data.numbers import as_number
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows
from sonde.findings.evidence.texts.text_measures import FORMS, KINDS
from sonde.findings.evidence.texts.writing import Writing, text_writing
from sonde.findings.evidence.versus.label_comparison import share_chance
from sonde.findings.words.text import listed, number, percent, shortened
from sonde.run.comparing.broken_rows import chance_of_counts
from sonde.stats.adjusted_p import adjusted_p

LEAST_ROWS: Final = 20
MOST_VALUES: Final = 50
OF_PICTURES: Final = {name: f"the {name} of the images" for name in PICTURE_COLUMNS}
MOST_COLUMNS: Final = 300
LABELS_MOVED: Final = 0.01
FACTORS: Final = {
    10.0: "", 100.0: "", 1000.0: "", 25.4: "inches to millimetres",
    2.54: "inches to centimetres", 0.3048: "feet to metres", 0.45359237: "pounds to kilograms",
    1.609344: "miles to kilometres", 60.0: "minutes to seconds", 3600.0: "hours to seconds",
    24.0: "days to hours", 3.785411784: "gallons to litres", 255.0: "bytes to 0..1",
}  # fmt: skip
"""Factors between units; their inverses are known too."""
Kind = Literal["missing", "one value", "new values", "exchanged", "factor", "shift", "other"]


@dataclass(frozen=True)
class ColumnMove:
    """Difference of one column between OTHER and DATA.

    Parameters
    ----------
    column : str
    kind : str
        What happened to the values.
    said : str
        The move in words. Medians, means and shares of a chosen value are those of the rows held
        out from the choice.
    fix : str
        A line of pandas code that undoes the move; empty if no line does.
    effect : float
        Kolmogorov-Smirnov distance of numbers, total variation distance of words, or difference of
        the share of a value.
    p : float
        Corrected for all columns and tests (Holm).
    is_input : bool
        Whether the model is given the column.
    factor : float, default=1.0
        What the values are multiplied by.
    partner : str, default=""
        The column that it is exchanged with.
    """

    column: str
    kind: Kind
    said: str
    fix: str
    effect: float
    p: float
    is_input: bool
    factor: float = 1.0
    partner: str = ""


@dataclass(frozen=True, eq=False)
class ColumnComparison:
    """The columns that changed, inputs first; and the numbers of columns and rows."""

    moves: tuple[ColumnMove, ...]
    n_columns: int
    n_rows: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Side:
    """Columns of one row of each group; ``confirms`` marks the held-out rows."""

    columns: Mapping[str, Sequence[Any]]
    confirms: Bool[np.ndarray, "row"]
    labels: Sequence[str] = ()

    def of(self, rows: Sequence[int]) -> "_Side":
        """Return a copy with these rows only."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return _Side(columns, self.confirms[list(rows)], [self.labels[i] for i in rows])


@once
def column_comparison(evidence: Evidence) -> ColumnComparison | str:
    """Return how the columns of OTHER changed, or the reason why they are not compared."""
    if evidence.versus is None:
        return "there is no second data set (--versus OTHER)"
    sides = _of_equal_labels(_side(evidence), _side(evidence.versus.other))
    names = [name for name in sides[0].columns if name in sides[1].columns]
    if not names:
        return "the two data sets have no columns of numbers, words or texts in common"
    if min(int(side.confirms.sum()) for side in sides) < LEAST_ROWS:
        return (
            f"needs {2 * LEAST_ROWS} rows in each data set: half of them choose a change, "
            "the others test it"
        )
    n = [len(side.confirms) for side in sides]
    writing = evidence.get(text_writing)
    of_tokens = writing.measures if isinstance(writing, Writing) else {}
    pairs = {
        name: _pair(name, *sides, of_tokens if name in evidence.data.inputs else {})
        for name in names[:MOST_COLUMNS]
    }
    kept = [p for some in pairs.values() for p in some]
    tests = [test for pair in kept for test in pair.tests()]
    adjusted = adjusted_p(torch.tensor([test.p for test in tests], dtype=torch.float64)).tolist()
    moves: dict[str, ColumnMove] = {}
    for test, p in zip(tests, adjusted, strict=True):
        move = test.move(p, evidence.data.inputs, kept)
        if move is not None and p < 0.001:
            old = moves.get(move.column)
            if old is None or _rank(move) < _rank(old):
                moves[move.column] = move
    for move in [m for m in moves.values() if m.partner in moves]:
        moves[move.partner] = replace(move, column=move.partner, partner=move.column)
    moves |= {move.column: move for move in _missing_moves(evidence)}
    ordered = sorted(moves.values(), key=lambda m: (not m.is_input, *_rank(m)))
    return ColumnComparison(tuple(ordered), sum(map(bool, pairs.values())), (n[0], n[1]))


def _missing_moves(evidence: Evidence) -> list[ColumnMove]:
    """Return the input columns with more missing values in OTHER, excluded rows included."""
    sides = [evidence.data.missing, evidence.versus and evidence.versus.other_data.missing]
    if not all(sides):
        return []
    n, m = (int(side["rows"]) for side in sides)
    moves: list[ColumnMove] = []
    for name, count in sides[1]["columns"].items():
        a, b = sides[0]["columns"].get(name, 0), int(count)
        p = min(1.0, chance_of_counts((a, n), (b, m)) * len(sides[1]["columns"]))
        if p < 0.001 and b / m - a / n >= 0.05:
            words = f"{name} is missing in {percent(b / m)} of rows, not {percent(a / n)}"
            moves.append(ColumnMove(name, "missing", words, "", b / m - a / n, p, True))
    return moves


_RANK: Final[tuple[Kind, ...]] = (
    "exchanged", "factor", "missing", "one value", "new values", "shift", "other",
)  # fmt: skip


def columns_section(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the columns that changed, as the report lists them."""
    comparison = column_comparison(evidence)
    if isinstance(comparison, str):
        return []
    names = ("column", "kind", "said", "fix", "effect", "p")
    return [{name: getattr(move, name) for name in names} for move in comparison.moves]


def _rank(move: ColumnMove) -> tuple[int, float]:
    if move.column in OF_PICTURES.values():  # in their order: blur lowers contrast as well
        return len(_RANK) + [*OF_PICTURES.values()].index(move.column), move.p
    return _RANK.index(move.kind), move.p


def _side(evidence: Evidence) -> _Side:
    shared, data = shared_rows(evidence), evidence.data
    if shared.order is None or data.own_columns is None:
        return _Side({}, np.zeros(0, dtype=bool))
    label = shared.column("label")
    rows = one_per_group(shared.group)
    examples = shared.order[rows].tolist()
    columns: dict[str, Sequence[Any]] = {}
    if data.inputs and data.key_columns is not None and data.key_columns(examples[:1]):
        inputs = data.key_columns(examples)
        columns |= {name: inputs[name] for name in data.inputs if name in inputs}
    columns |= data.own_columns(examples)
    for column, name in OF_PICTURES.items():
        x = shared.column(column)
        if x is not None and name not in columns:
            columns[name] = x.double().reshape(len(x), -1)[rows, 0].tolist()
    has_labels = label is not None and bool((label[rows] >= 0).all())
    names = (
        [class_name(data, k) for k in label[rows].tolist()]
        if has_labels and label is not None
        else ()
    )
    return _Side(columns, (shared.group[rows] % 2 == 1).numpy(), names)


def _of_equal_labels(mine: _Side, theirs: _Side) -> tuple[_Side, _Side]:
    """Return both data sets, subsampled to equal class proportions if these differ.

    A column that depends on the label moves with the shares of labels, which SND054 reports. Each
    label keeps the smaller of its two shares.
    """
    if not (mine.labels and theirs.labels):
        return mine, theirs
    counts = [Counter(side.labels) for side in (mine, theirs)]
    common = sorted(counts[0].keys() & counts[1].keys())
    table = np.array([[c[name] for name in common] for c in counts], dtype=float)
    if len(common) < 2 or share_chance(table) >= LABELS_MOVED:
        return mine, theirs
    wanted = (table / table.sum(1, keepdims=True)).min(0)
    thinned: list[_Side] = []
    for side, count in zip((mine, theirs), table, strict=True):
        kept = dict(zip(common, np.floor(wanted * (count / wanted).min()).astype(int), strict=True))
        seen: Counter[str] = Counter()
        rows: list[int] = []
        for i, name in enumerate(side.labels):
            if seen[name] < kept.get(name, 0):
                rows.append(i)
            seen[name] += 1
        thinned.append(side.of(rows))
    return thinned[0], thinned[1]


@dataclass(frozen=True, eq=False)
class Numbers:
    """A numeric column in both data sets; missing values are NaN."""

    name: str
    column: str
    mine: Float[np.ndarray, "row"]
    theirs: Float[np.ndarray, "row2"]
    confirms: tuple[Bool[np.ndarray, "row"], Bool[np.ndarray, "row2"]]
    is_derived: bool = False

    def half(self, confirms: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the known values in both data sets, on the held-out or on the selection rows."""
        sides = zip((self.mine, self.theirs), self.confirms, strict=True)
        halves = [x[(at == confirms) & ~np.isnan(x)] for x, at in sides]
        return halves[0], halves[1]

    def tests(self) -> list["_Test"]:
        """Return this column's tests: on all rows, or on held-out rows for a chosen value."""
        x, y = self.half(True)
        all_tests: list[_Test] = []
        lost = [np.isnan(v) for v in (self.mine, self.theirs)]
        if lost[0].any() or lost[1].any():
            all_tests.append(_Test(self, "missing", *_shares(lost[0], lost[1])))
        if min(len(x), len(y)) < LEAST_ROWS // 2:
            return all_tests
        value = None if self.is_derived else self._stuck()
        if value is not None:
            all_tests.append(_Test(self, "one value", *_shares(x == value, y == value), value))
        all_tests.append(
            _Test(self, "other", *moved_by_chance(self.mine[~lost[0]], self.theirs[~lost[1]]))
        )
        return all_tests

    def _stuck(self) -> float | None:
        """Return the value whose frequency grew most on the selection rows, or None."""
        x, y = self.half(False)
        values, counts = np.unique(y, return_counts=True)
        if not len(values) or not len(x):
            return None
        best = np.argsort(-counts)[:20]
        gain = [counts[k] / len(y) - float((x == values[k]).mean()) for k in best]
        k = int(np.argmax(gain))
        return float(values[best[k]]) if gain[k] > 0.02 else None


@dataclass(frozen=True, eq=False)
class Words:
    """A column of few different words in both data sets."""

    name: str
    column: str
    mine: tuple[str, ...]
    theirs: tuple[str, ...]
    confirms: tuple[Bool[np.ndarray, "row"], Bool[np.ndarray, "row2"]]

    def tests(self) -> list["_Test"]:
        """Return the test of the frequencies of all words."""
        counts = [Counter(x) for x in (self.mine, self.theirs)]
        names = sorted(set().union(*counts))
        table = np.array([[c[name] for name in names] for c in counts], dtype=float)
        if len(names) < 2:
            return []
        shares = table / table.sum(1, keepdims=True)
        return [
            _Test(
                self,
                "new values",
                share_chance(table),
                float(np.abs(shares[0] - shares[1]).sum() / 2),
            )
        ]


@dataclass(frozen=True, eq=False)
class _Test:
    """One statistical test of one column."""

    of: Numbers | Words
    kind: Kind
    p: float
    effect: float
    value: float = math.nan

    def move(
        self, p: float, inputs: Sequence[str], others: Sequence[Numbers | Words]
    ) -> ColumnMove | None:
        """Describe the change that the test found, or return None if its effect is small."""
        least = {"missing": 0.05, "one value": 0.05, "new values": 0.1}.get(self.kind, 0.15)
        if abs(self.effect) < least:
            return None
        moved = ColumnMove(self.of.column, self.kind, "", "", abs(self.effect), p,
                          self.of.column in {*inputs, *OF_PICTURES.values()})  # fmt: skip
        if isinstance(self.of, Words):
            return replace(moved, said=_words(self.of))
        if self.kind == "missing":
            shares = [float(np.isnan(v).mean()) for v in (self.of.mine, self.of.theirs)]
            words = f"{self.of.name} is missing in {percent(shares[1])} of rows, not "
            words += percent(shares[0])
            return replace(moved, said=words) if self.effect > 0 else None
        if self.kind == "one value":
            x, y = self.of.half(True)
            shares = [float((v == self.value).mean()) for v in (x, y)]
            words = (
                f"{self.of.name} is {number(self.value, 6)} in {percent(shares[1])} of rows, not "
            )
            words += percent(shares[0])
            name = repr(self.of.column)
            fix = f"frame.loc[frame[{name}] == {self.value:.6g}, {name}] = nan"
            return replace(moved, said=words, fix=fix) if shares[1] > 3 * shares[0] else None
        return _moved(moved, self.of, [o for o in others if isinstance(o, Numbers)])


def moved_by_chance(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the p-value that columns have one distribution, and their KS distance.

    The chance is twice the smaller p-value of two tests. Kolmogorov-Smirnov sees every difference;
    the rank-sum test sees a shift of all values with half as many rows.
    """
    shape: Any = ks_2samp(mine, theirs, method="asymp")
    place: Any = mannwhitneyu(mine, theirs, method="asymptotic")
    chances = [float(p) for p in (shape.pvalue, place.pvalue) if not math.isnan(p)]
    return min(1.0, 2 * min(chances)), float(shape.statistic)


def _shares(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the p-value of Fisher's exact test on two fractions, and their difference."""
    table = [[int(v.sum()), int((~v).sum())] for v in (mine, theirs)]
    result: Any = fisher_exact(table)
    return float(result.pvalue), float(theirs.mean() - mine.mean())


def _moved(made: ColumnMove, of: Numbers, others: Sequence[Numbers]) -> ColumnMove:
    """Describe how numbers changed: exchanged, in another unit, or higher or lower."""
    (a, b), (x, y) = of.half(False), of.half(True)
    name, fits = of.name, min(made.effect / 3, max(0.08, _limit(len(x), len(y))))
    for other in others:
        if other is of or of.is_derived or other.is_derived:
            continue
        (_, c), (z, w) = other.half(True), other.half(True)
        gaps = _gap(z, y), _gap(x, c)  # of few rows one of the two may be wide by chance
        if sum(gaps) < 2 * fits and max(gaps) < 1.5 * fits and _gap(z, w) > 2 * fits:
            pair = sorted((name, other.name))
            words = f"{pair[0]} and {pair[1]} are exchanged"
            fix = f"frame[{pair!r}] = frame[{pair[::-1]!r}].values"
            return replace(made, kind="exchanged", said=words, fix=fix, partner=other.name)
    factor = _factor(a, b)
    if factor is not None and not of.is_derived and _gap(x * factor, y) < fits:
        unit = _unit(factor, _spread_of_factor(a, b))
        factor = unit[0] if unit else factor
        words = f"{name} is multiplied by {number(factor, 4)}{unit[1] if unit else ''}"
        fix = f"frame[{name!r}] /= {factor:.6g}"
        return replace(made, kind="factor", said=words, fix=fix, factor=factor)
    spread = float(np.subtract(*np.percentile(x, (75, 25)))) / 1.349 or float(x.std()) or 1.0
    away = (float(np.median(y)) - float(np.median(x))) / spread
    say = percent if of.is_derived and max(np.max(x), np.max(y)) <= 1 else number
    ends = f"median {say(float(np.median(y)))}, not {say(float(np.median(x)))}"
    if abs(away) < 0.1:
        ends = f"mean {say(float(y.mean()))}, not {say(float(x.mean()))}"
        return replace(made, kind="other", said=f"{name} has another distribution ({ends})")
    words = f"{name} is {'higher' if away > 0 else 'lower'} ({ends}; {number(abs(away))} sd)"
    return replace(made, kind="shift", said=words)


def _limit(n: int, m: int) -> float:
    """Return the 99 % quantile of the Kolmogorov-Smirnov distance of equal distributions."""
    return 1.63 * math.sqrt((n + m) / (n * m))


def _gap(x: np.ndarray, y: np.ndarray) -> float:
    if not len(x) or not len(y):
        return 1.0
    result: Any = ks_2samp(x, y, method="asymp")
    return float(result.statistic)


def _factor(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the factor from ``x`` to ``y``; None if it is unclear or close to 1."""
    if not len(x) or not len(y):
        return None
    ends = [np.percentile(v, range(10, 100, 10)) for v in (x, y)]
    same = (ends[0] * ends[1] > 0) & (np.abs(ends[0]) > 0.1 * np.abs(ends[0]).max())
    if same.sum() < 3:
        return None
    factor = float(np.exp(np.log(ends[1][same] / ends[0][same]).mean()))
    return factor if abs(math.log(factor)) > math.log(1.4) else None


def _spread_of_factor(x: np.ndarray, y: np.ndarray) -> float:
    """Return three standard errors of the log factor of two samples, cut to [0.01, 0.15]."""
    each = [v.std() / max(abs(v.mean()), 1e-300) / math.sqrt(len(v)) for v in (x, y)]
    return min(0.15, max(0.01, 3 * math.hypot(*each)))


def _unit(factor: float, spread: float) -> tuple[float, str] | None:
    """Return the nearest known factor within ``spread``, and the units that it converts."""
    candidates: list[tuple[float, float, str]] = []
    for unit, words in FACTORS.items():
        turned = " to ".join(reversed(words.split(" to "))) if " to " in words else words
        for value, unit_words in ((unit, words), (1 / unit, turned)):
            candidates.append((abs(math.log(factor / value)), value, unit_words))
    away, value, unit_words = min(candidates)
    return (value, f" ({unit_words})" if unit_words else "") if away < spread else None


def _words(of: Words) -> str:
    usual, theirs = set(of.mine), Counter(of.theirs)
    new = [name for name, _ in theirs.most_common() if name not in usual]
    share = sum(theirs[name] for name in new) / len(of.theirs)
    if share >= 0.05:
        names = listed([repr(shortened(name, 16)) for name in new], 3)
        return f"{of.name} has new values in {percent(share)} of rows: {names}"
    own = Counter(of.mine)
    rates = {k: (own[k] / len(of.mine), theirs[k] / len(of.theirs)) for k in {*own, *theirs}}
    name, (x, y) = max(rates.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    return f"{of.name} is {shortened(name, 16)!r} in {percent(y)} of rows, not {percent(x)}"


def _pair(
    name: str,
    mine: _Side,
    theirs: _Side,
    of_tokens: Mapping[str, Callable[[str], float]] = MappingProxyType({}),
) -> Sequence[Numbers | Words]:
    """Return a column as numbers, words or text measures; empty if it only identifies rows.

    ``of_tokens`` are further measures of texts that the model is given.
    """
    x, y = mine.columns[name], theirs.columns[name]
    confirms = (mine.confirms, theirs.confirms)
    numbers = [np.array([_number(v) for v in values]) for values in (x, y)]
    is_known = [~np.isnan(n) for n in numbers]
    filled = [np.array([v not in (None, "") for v in values]) for values in (x, y)]
    if is_known[0].sum() >= 0.9 * filled[0].sum() and is_known[1].sum() >= 0.5 * filled[1].sum():
        if len(np.unique(numbers[0][is_known[0]])) <= 1 and not is_known[1].any():
            return []
        is_derived = name in OF_PICTURES.values()
        return [Numbers(name, name, numbers[0], numbers[1], confirms, is_derived)]
    words = [tuple("" if v is None else str(v) for v in values) for values in (x, y)]
    if len(set(words[0])) <= min(MOST_VALUES, len(words[0]) / 4):
        return [Words(name, name, words[0], words[1], confirms)]
    if np.mean([len(v.split()) for v in words[0]]) < 2:
        return []  # names of rows
    measures = {**FORMS, **of_tokens}
    numbers = [[np.array([float(of(t)) for t in some]) for some in words]
               for of in measures.values()]  # fmt: skip
    return [
        *_kinds_of_texts(name, words, confirms),
        *(
            Numbers(pattern.format(name), name, sides[0], sides[1], confirms, is_derived=True)
            for pattern, sides in zip(measures, numbers, strict=True)
        ),
    ]


def _kinds_of_texts(
    name: str, texts: Sequence[Sequence[str]], confirms: tuple[np.ndarray, np.ndarray]
) -> Sequence[Words]:
    """Return languages and scripts in both data sets, without texts of unknown language."""
    kinds: list[Words] = []
    for pattern, of in KINDS.items():
        sides = [tuple(word for t in some if (word := of(t)) is not None) for some in texts]
        if min(map(len, sides)) >= LEAST_ROWS:
            kinds.append(Words(pattern.format(name), name, sides[0], sides[1], confirms))
    return kinds


def _number(value: Any) -> float:
    number = None if value is None or value == "" else as_number(value)
    return math.nan if number is None else float(number)
