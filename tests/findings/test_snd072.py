from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import sonde
from findings._nets import assert_clear, assert_raised
from findings._tables import HEALTHY, bundled, evidence_with, table_of
from sonde.findings.codes.snd072 import SND072
from sonde.findings.evidence.inputs.placeholders import stand_ins
from sonde.findings.settings import ScanSettings


def _planted(value: float, column: int = 3, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    x = bundled("breast_cancer")[0].copy()
    rows = np.random.default_rng(0).random(len(x)) < share
    x[rows, column] = value
    return x, np.flatnonzero(rows)


@pytest.mark.truth("the rows of breast_cancer in which the constant was written")
def test_a_constant_far_outside_its_column_is_named_with_its_rows() -> None:
    for value, level in ((-999, "warning"), (9999, "warning"), (-1, "warning"), (1e20, "warning")):
        x, rows = _planted(value)
        names = bundled("breast_cancer")[2]
        finding = assert_raised(SND072().check(evidence_with(x, names)), level)
        assert finding.examples == tuple(rows)
        assert finding.figure.value == pytest.approx(len(rows) / len(x))
        written = "1e20" if value == 1e20 else f"{value:,}"
        assert finding.sentence.startswith(f"mean_area is {written} in ")
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(x, columns=names)
        exec(finding.fix.partition(", then")[0], {"frame": frame, "nan": float("nan")})
        assert np.flatnonzero(frame["mean_area"].isna()).tolist() == rows.tolist()


@pytest.mark.truth("the constants that were written in both ends of a column")
def test_several_constants_in_both_ends_are_named_and_rare_single_values_are_not() -> None:
    x, _ = _planted(-999)
    x[5:9, 3], x[20:22, 3], x[30, 7] = -998, 99999, 77.0
    found = {(s.column, s.value): s.n for s in stand_ins(table_of(x))}
    kept = {v: int((x[:, 3] == v).sum()) for v in (-999, -998, 99999)}
    assert found == {(3, v): n for v, n in kept.items()}


@pytest.mark.truth("zeros and -1 that were written in columns of whole and of other numbers")
def test_zero_and_minus_one_are_notes_where_they_may_be_measured() -> None:
    draw = np.random.default_rng(1)
    pressure, visits = draw.uniform(40, 120, 400), draw.poisson(30, 400).astype(float)
    zero, minus = draw.random(400) < 0.1, draw.random(400) < 0.1
    x = np.stack([np.where(zero, 0, pressure), np.where(minus, -1, visits), visits], 1)
    finding = assert_raised(SND072().check(evidence_with(x)), "note")
    assert finding.examples == tuple(np.flatnonzero(zero | minus))


def test_healthy_tables_are_clear() -> None:
    for name in HEALTHY:
        x, _, names = bundled(name)
        assert_clear(SND072().check(evidence_with(x, names)))
    draw = np.random.default_rng(2)
    odd = [
        draw.lognormal(0, 2, 700), np.where(draw.random(700) < 0.3, 0, draw.lognormal(3, 1, 700)),
        draw.poisson(3, 700), np.clip(draw.normal(50, 20, 700), 0, 100), draw.integers(0, 6, 700),
        np.round(draw.lognormal(8, 1.5, 700), -3), np.round(draw.standard_cauchy(700)),
        draw.standard_t(2, 700), (draw.random(700) < 0.01) * 1.0,
    ]  # fmt: skip
    assert_clear(SND072().check(evidence_with(np.stack(odd, 1))))


@pytest.mark.slow
def test_a_table_is_judged_without_a_model_and_with_one(tmp_path: Path) -> None:
    x, rows = _planted(-999)
    y, names = bundled("breast_cancer")[1:]
    lines = [",".join([*names, "label"])]
    lines += [",".join([*map(repr, row.tolist()), str(k)]) for row, k in zip(x, y, strict=True)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    settings = ScanSettings(progress=False, only=("SND072",))
    for model in ("-", nn.Sequential(nn.Linear(30, 4), nn.Linear(4, 2))):
        (finding,) = sonde.scan(model, path, settings=settings).findings
        assert "mean_area is -999 in" in finding["sentence"]
        assert len(finding.rows) == min(50, len(rows))
    texts = sonde.scan(model, path, settings=replace(settings, only=("SND077", "SND081")))
    assert texts.json()["verdict"]["not_applicable"] == 2  # numbers are no texts
    tensor = (x.astype(np.float32), y)
    (finding,) = sonde.scan(model, tensor, settings=settings).findings
    assert finding["sentence"].startswith("column 3 is -999 in")
