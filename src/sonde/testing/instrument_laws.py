"""The laws of instruments: functions that raise AssertionError if an instrument breaks them."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sonde.core.columns import WHOLE_NUMBERS
from sonde.core.errors import InputError, SondeError
from sonde.core.finite import finite_rows
from sonde.core.instrument import Detector, Instrument, score_needs
from sonde.core.result import Result, Scorer
from sonde.core.state import digest
from sonde.core.statistic import parameter_names
from sonde.core.stream import Stream
from sonde.engine.folding import fit_arrays, observe_stream
from sonde.engine.passes import states_of
from sonde.engine.requests import Task, requests
from sonde.engine.selection import SITE_COLUMNS
from sonde.stats import token_metrics

WIDTH, CLASSES = 4, 3
EXAMPLE = 4
SITES = {"one": ("x",), "pair": ("a", "b"), "all": ("a", "b", "c")}


def make_inputs(
    n: int = 96, seed: int = 0, dtype: torch.dtype = torch.float64, width: int = WIDTH
) -> dict[str, Any]:
    """Return ``n`` rows of three classes, as ``{name: values}``.

    ``x`` is for instruments of one site, ``a``, ``b`` and ``c`` are the rows at three sites; the
    other entries are the columns that plain arrays can bring.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    label = torch.arange(n) % CLASSES
    weight, bias = torch.eye(CLASSES, width, dtype=torch.float64) * 2, torch.zeros(CLASSES)
    x = normal(n, width) + 3 * torch.eye(CLASSES, width, dtype=torch.float64)[label]
    given = {name: torch.arange(n) % 3 for name in WHOLE_NUMBERS}
    return given | {
        "x": x.to(dtype),
        "a": x.to(dtype),
        "b": (x @ normal(width, width) + normal(n, width)).to(dtype),
        "c": normal(n, width).to(dtype),
        "label": label,
        "logits": x @ weight.T,
        "perturbed_logits": x @ weight.T * 1.1,
        "grad": normal(n, width).to(dtype),
        "first_error": torch.tensor([-1, 0, -2])[label],
        "ids": [f"row {i}" for i in range(n)],
        "group": [f"group {i // 2}" for i in range(n)],
        "position": torch.zeros(n, dtype=torch.int64),
        "pair": [f"pair {i // 2}" for i in range(n)],
        "side": torch.arange(n) % 2,
        "head": (weight, bias.double()),
    }


MADE = {"draw", "group_draw", "order", "example", "piece", "occurrence", "y", "special"}
"""Columns that a stream computes from those that plain arrays bring."""


def lacking(instrument: Instrument) -> set[str]:
    """Return the required columns of an instrument that plain arrays cannot provide."""
    needs = {name for read in instrument.all_reads().values() for name in read.statistic.needs()}
    if isinstance(instrument, Detector):
        needs.update(score_needs(instrument))
    return needs - set(make_inputs(4)) - MADE


def require_columns(instrument: Instrument) -> None:
    """Raise if an instrument cannot be tested on plain arrays.

    Raises
    ------
    InputError
        If it needs columns that plain arrays do not bring; the message names them.
    """
    if columns := lacking(instrument):
        raise InputError(
            f"check: expected columns that plain arrays bring, got {sorted(columns)} in "
            f"{instrument!r}. See sonde.core.columns."
        )


def pick(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return every column at the given row indices, in the order of the indices."""

    def some(name: str, values: Any) -> Any:
        if name == "head":
            return values
        return values[rows] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]

    return {name: some(name, values) for name, values in inputs.items()}


def stream_of(instrument: Instrument, inputs: Mapping[str, Any]) -> Stream:
    """Return the inputs as a stream with the sites that the instrument spans."""
    sites, columns = split_inputs(instrument, inputs)
    return Stream.of(sites, **columns)


def split_inputs(
    instrument: Instrument, inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows of the instrument's sites, and the other columns."""
    keys = sites_of(instrument)
    inputs = arranged(instrument, inputs)
    columns = {k: v for k, v in inputs.items() if k not in ("x", "a", "b", "c")}
    if instrument.span != "one":
        columns["grad"] = {key: columns["grad"] for key in keys}
    return {key: rows_at(instrument, inputs[key], i) for i, key in enumerate(keys)}, columns


def size_of_example(instrument: Instrument) -> int:
    """Return the rows per example in tests: 4 if examples must be whole, else 1."""
    scored = isinstance(instrument, Detector) and instrument.whole_examples
    observed = any(r.statistic.whole_examples for r in instrument.all_reads().values())
    return EXAMPLE if scored or observed else 1


def arranged(instrument: Instrument, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inputs, with examples of four rows if the instrument needs whole examples."""
    size = size_of_example(instrument)
    if size == 1:
        return inputs
    row = torch.tensor([int(name.removeprefix("row ")) for name in inputs["ids"]])
    names = [f"example {i}" for i in (row // size).tolist()]
    return {**inputs, "ids": names, "group": names, "position": row % size}


def sites_of(instrument: Instrument) -> tuple[str, ...]:
    """Return the sites (keys of the inputs) of a span, or as many as ``reading()`` names."""
    asked = instrument.reading().get("sites", ())
    return SITES[instrument.span][: len(asked) or None]


def rows_at(instrument: Instrument, x: Tensor, site: int = 0) -> Tensor:
    """Return the rows at a site as the instrument reads them: ``x`` itself, or token metrics.

    For the reducer ``predictions``, ``x`` is taken as logits whose largest entry was the token;
    rows that are not finite become NaN.
    """
    asked = instrument.reading()
    reducer = asked["sites"][site].partition("|")[2] if "sites" in asked else asked.get("reducer")
    if reducer == "predictions":
        broken = ~finite_rows(x)[:, None]
        return token_metrics(x, x.argmax(1)).double().masked_fill(broken, math.nan)
    return x


def fit(instrument: Instrument, inputs: Mapping[str, Any]) -> Result:
    """Return the result for these rows, from the last pass if there are several."""
    sites, columns = split_inputs(instrument, inputs)
    return fit_arrays(instrument, sites, **columns)


def score(instrument: Instrument, scorer: Scorer, inputs: Mapping[str, Any]) -> Tensor:
    """Return the score of each row; columns of a scorer over all sites are tuples, one per site."""
    keys = sites_of(instrument)
    batch = next(stream_of(instrument, inputs).batches(0, len(inputs["label"])))
    inputs = arranged(instrument, inputs)

    def column(name: str) -> Any:
        if name in ("ids", "occurrence"):
            return batch.column(name, keys[0])
        if instrument.span != "all" or name not in SITE_COLUMNS:
            return rows_at(instrument, inputs[name]) if name == "x" else inputs[name]
        return tuple(
            rows_at(instrument, inputs[key], i) if name == "x" else inputs[name]
            for i, key in enumerate(keys)
        )

    return scorer.score(*(column(name) for name in parameter_names(type(scorer).score)))


def assert_same(a: Result, b: Result, rtol: float) -> None:
    """Assert that the values of two results are equal up to ``rtol``; NaN equals NaN."""
    first, second = torch.as_tensor(a.value).double(), torch.as_tensor(b.value).double()
    assert first.shape == second.shape, f"{tuple(first.shape)} and {tuple(second.shape)}"
    torch.testing.assert_close(first, second, rtol=rtol, atol=rtol, equal_nan=True)


def assert_defined(result: Result, where: str = "") -> None:
    """Assert that the value is finite, or that the result has a flag."""
    value = torch.as_tensor(result.value).double()
    finite = bool(torch.isfinite(value).all())
    assert finite or result.flags, f"{where}: value {result.value} without a flag"


def law_value(instrument: Instrument, inputs: Mapping[str, Any]) -> None:
    """The value is finite or flagged, ``n`` is positive, ``table`` and ``chart`` (as JSON) work."""
    result = fit(instrument, inputs)
    if not isinstance(result, Scorer):
        assert_defined(result)
    assert result.n > 0, f"n = {result.n}"
    assert result.table().num_rows >= 0
    json.dumps(result.chart(), allow_nan=False)


def law_degenerate(instrument: Instrument, make: Callable[..., dict[str, Any]]) -> None:
    """Few, equal or constant rows give a SondeError, a finite value, or a flag."""
    cases: dict[str, dict[str, Any]] = {f"{n} rows": make(n) for n in (1, 2, 3)}
    plain = make(36)
    for name, change in (
        ("constant rows", lambda x: x * 0 + 2),
        ("a constant unit", lambda x: torch.cat([x[:, :1] * 0 + 1, x[:, 1:]], 1)),
        ("equal rows", lambda x: x[torch.arange(len(x)) // 2]),
        ("half precision", lambda x: x.to(torch.bfloat16)),
    ):
        cases[name] = {**plain, **{k: change(plain[k]) for k in ("x", "a", "b", "c")}}
    for name, inputs in cases.items():
        try:
            result = fit(instrument, inputs)
        except SondeError:
            continue
        if not isinstance(result, Scorer):
            assert_defined(result, name)


def law_sizes(instrument: Instrument, make: Callable[..., dict[str, Any]]) -> None:
    """0 to ``10 dim`` rows give a SondeError, or a finite or flagged value and no NaN score."""
    for width in (1, 3, 64):
        for n in {0, 1, 2, width - 1, 10 * width}:
            inputs = make(n, dtype=torch.float16 if n == 10 * width else torch.float64, width=width)
            try:
                result = fit(instrument, inputs)
                if not isinstance(result, Scorer):
                    assert_defined(result, f"{n} rows of {width}")
                else:
                    scores = score(instrument, result, inputs)
                    assert not scores.isnan().any(), f"{n} rows of {width}: a score is NaN"
            except SondeError:
                continue


def law_unlabelled(instrument: Instrument, inputs: Mapping[str, Any]) -> None:
    """Without labels, it raises a SondeError or gives a finite or flagged value and finite scores.

    Both if the label column is missing and if every label is -1.
    """
    missing = {name: values for name, values in inputs.items() if name != "label"}
    unknown = {**inputs, "label": torch.full_like(inputs["label"], -1)}
    for case, given in (("no label column", missing), ("labels of -1", unknown)):
        try:
            result = fit(instrument, given)
            if isinstance(result, Scorer):
                scores = score(instrument, result, unknown)
                assert bool(torch.isfinite(scores).all()), f"{case}: a score is not finite"
            else:
                assert_defined(result, case)
        except SondeError:
            continue
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error


def law_order(instrument: Instrument, inputs: Mapping[str, Any]) -> None:
    """Rows in another order give the same value or scores; groups of two rows stay together."""
    n = len(inputs["label"])
    groups = torch.randperm(n // 2, generator=torch.Generator().manual_seed(3))
    rows = torch.stack([groups * 2, groups * 2 + 1], 1).flatten()
    first, second = fit(instrument, inputs), fit(instrument, pick(inputs, rows))
    if isinstance(first, Scorer) and isinstance(second, Scorer):
        a, b = score(instrument, first, inputs), score(instrument, second, inputs)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    else:
        assert_same(first, second, 1e-7)


def law_persons(instrument: Instrument, make: Callable[..., dict[str, Any]]) -> None:
    """Five near copies of each row, in the group of that row, give no smaller standard error.

    The error of 480 rows of 48 groups is at least 0.6 of that of 96 rows of these groups; one that
    counts rows has 0.45. Errors of samples and of random halves are averaged over three draws.
    """
    ratios = list[float]()
    for seed in range(3):
        alone, copied = errors_of_persons(instrument, lambda n, s=seed: make(n, s))
        if alone is None or copied is None:
            return
        ratios.append(copied / alone if alone > 0 else math.inf)
        if sum(ratios) / len(ratios) >= LEAST_RATIO:
            return
    mean = sum(ratios) / len(ratios)
    raise AssertionError(f"five near copies of each row make the error {mean:.2f} times as large")


LEAST_RATIO, COPIES = 0.6, 5


def errors_of_persons(
    instrument: Instrument, make: Callable[[int], dict[str, Any]]
) -> tuple[float | None, float | None]:
    """Return the standard errors of 96 rows of groups, and of five near copies of each row.

    None if a result has none; of several numbers the root mean square.
    """
    size, n = max(2, size_of_example(instrument)), 96
    plain, row = make(n), torch.arange(COPIES * n)
    near: dict[str, Any] = pick(plain, row % n) | {
        "ids": [f"row {i}" for i in row.tolist()],
        "pair": [f"pair {i // 2}" for i in row.tolist()],
    }
    generator = torch.Generator().manual_seed(9)
    for name in ("x", "a", "b", "c", "grad", "logits", "perturbed_logits"):
        noise = torch.randn(near[name].shape, generator=generator, dtype=torch.float64)
        near[name] = near[name] + 1e-4 * noise

    def error(inputs: dict[str, Any]) -> float | None:
        sites, columns = split_inputs(instrument, inputs)
        columns["group"] = [f"person {i % n // size}" for i in range(len(inputs["label"]))]
        se = fit_arrays(instrument, sites, **columns).se
        return None if se is None else float(torch.as_tensor(se).double().square().mean().sqrt())

    alone = error(plain)
    return alone, None if alone is None else error(near)


def law_ragged(instrument: Instrument, inputs: Mapping[str, Any]) -> None:
    """Examples of one to four rows give the same value or scores in any order of the examples.

    For instruments that observe or score whole examples; one that needs examples of equal length
    may raise a SondeError.
    """
    row = torch.arange(len(inputs["label"]))
    example = row // EXAMPLE
    kept = row[row % EXAMPLE <= example % EXAMPLE]
    shuffled = torch.randperm(int(example[-1]) + 1, generator=torch.Generator().manual_seed(5))
    other = kept[torch.argsort(shuffled[kept // EXAMPLE], stable=True)]
    try:
        first, second = (fit(instrument, pick(inputs, rows)) for rows in (kept, other))
    except SondeError:
        return
    if isinstance(first, Scorer) and isinstance(second, Scorer):
        a = score(instrument, first, pick(inputs, kept))
        b = score(instrument, first, pick(inputs, other))
        where = torch.argsort(other)
        torch.testing.assert_close(a, b[where], rtol=1e-6, atol=1e-6)
    else:
        assert_defined(first)
        assert_same(first, second, 1e-7)


def law_again(instrument: Instrument, inputs: Mapping[str, Any]) -> None:
    """The result does not depend on the global random state, and the rows are not changed."""
    kept = {k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)}
    torch.manual_seed(1)
    first = fit(instrument, inputs)
    torch.manual_seed(2)
    second = fit(instrument, inputs)
    assert_same(first, second, 0.0)
    if isinstance(first, Scorer) and isinstance(second, Scorer):
        a, b = score(instrument, first, inputs), score(instrument, second, inputs)
        assert torch.equal(a, b)
    for name, values in kept.items():
        assert torch.equal(values, inputs[name]), f"the column {name} changed"


def law_company(
    instrument: Instrument, others: list[Instrument], inputs: Mapping[str, Any]
) -> None:
    """The value is equal if other instruments (up to twelve) run in the same pass."""
    stream = stream_of(instrument, inputs)
    keys = sites_of(instrument)
    task = Task(instrument, keys)
    asked = instrument.reading()
    asked = asked if "reducer" in asked else {}
    same_rows = [i for i in others if i.span == instrument.span and i.reading() == asked]
    company = [Task(other, keys) for other in same_rows if other != instrument][:12]
    alone = observe_stream(stream, requests([task]))
    together = observe_stream(stream, requests([task, *company]))
    first = instrument.result(**states_of(task, alone))
    second = instrument.result(**states_of(task, together))
    assert_same(first, second, 0.0)


def law_then(instrument: Instrument, make: Callable[..., dict[str, Any]]) -> None:
    """``then(result)`` depends on the result: other data give another second pass, or none."""
    digests = []
    wide = {k: v * 10 if k in ("x", "a", "b", "c") else v for k, v in make(96, 2).items()}
    for inputs in (make(96, 0), make(96, 1), wide):
        stream, task = stream_of(instrument, inputs), Task(instrument, sites_of(instrument))
        result = instrument.result(**states_of(task, observe_stream(stream, requests([task]))))
        following = instrument.then(result)
        digests.append(None if following is None else digest(tuple(following.reads().values())))
    assert None in digests or len(set(digests)) > 1, "the next pass ignores the result"


def law_score_finite(detector: Detector, inputs: Mapping[str, Any]) -> None:
    """Finite rows have finite scores; other rows score +inf and change no other score.

    Rows with a NaN, an infinity or (except in logits) a number too large to square are not finite.
    """
    scorer = fit(detector, inputs)
    assert isinstance(scorer, Scorer)
    plain = score(detector, scorer, inputs)
    assert plain.shape == (len(inputs["label"]),), f"shape {tuple(plain.shape)}"
    assert bool(torch.isfinite(plain).all()), "not finite for finite rows"
    broken, n_bad = dict(inputs), 3
    for i, bad in enumerate((math.nan, math.inf, -math.inf, 1e61)):
        needs = parameter_names(type(scorer).score)
        sites = sites_of(detector) if detector.span != "one" and "x" in needs else ()
        for name in (*needs, *sites):
            if i == 3 and "logits" in name:
                continue
            if isinstance(values := broken.get(name), Tensor) and values.is_floating_point():
                broken[name] = broken[name].clone()
                broken[name][i, 0] = bad
                n_bad = i + 1
    scores = score(detector, scorer, broken)
    lost = scores[:n_bad]
    assert bool((lost == math.inf).all()), f"scores of non-finite rows: {lost.tolist()}"
    others = slice(max(n_bad, size_of_example(detector)), None)
    torch.testing.assert_close(scores[others], plain[others], rtol=1e-9, atol=1e-9)


def law_score_alone(detector: Detector, inputs: Mapping[str, Any]) -> None:
    """A row's score does not depend on the other examples of its batch, nor on their order."""
    scorer = fit(detector, inputs)
    assert isinstance(scorer, Scorer)
    rows = torch.arange(32)
    whole = score(detector, scorer, pick(inputs, rows))
    parts = rows.split(size_of_example(detector))
    single = torch.cat([score(detector, scorer, pick(inputs, part)) for part in parts])
    backwards = score(detector, scorer, pick(inputs, rows.flip(0))).flip(0)
    torch.testing.assert_close(single, whole, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(backwards, whole, rtol=1e-7, atol=1e-7)


def law_score_direction(detector: Detector, inputs: Mapping[str, Any]) -> None:
    """Outlying rows with logits all 0 have a higher median score than the fitted rows."""
    scorer = fit(detector, inputs)
    assert isinstance(scorer, Scorer)
    far = pick(inputs, torch.arange(40))
    for name in ("x", "a", "b", "c"):
        far[name] = torch.zeros_like(far[name]) - 60.0
    for name in ("logits", "perturbed_logits"):
        far[name] = torch.zeros_like(far[name])
    usual, unusual = score(detector, scorer, inputs).median(), score(detector, scorer, far).median()
    assert float(unusual) > float(usual), f"far rows score {unusual:.4g}, usual rows {usual:.4g}"
