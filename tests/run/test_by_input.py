"""One line for each input: its p-value holds, the planted site is the loudest, gaps are said."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import sonde
from sonde.core.errors import InputError
from sonde.detect import KNN, Mahalanobis
from sonde.run.scoring.by_input import by_input, default_rule
from sonde.run.scoring.fuse import with_fused
from sonde.run.scoring.tables import keys_of, part_of

N, SITES = 400, ("a", "b", "c")


def rows(n, seed, far=None):
    """Three sites that share most of their variance; at ``far`` the rows lie elsewhere."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 4, generator=g)
    return sonde.Stream.of(
        {s: shared + 0.5 * torch.randn(n, 4, generator=g) + 9 * (s == far) for s in SITES},
        ids=[f"{seed}-{i}" for i in range(n)],
    )


def scored(fitted, stream):
    return sonde.score(fitted, stream, progress=False)


@pytest.fixture(scope="module")
def fits():
    bare = sonde.fit([Mahalanobis(), KNN(k=3)], rows(N, 0), calibrate=0, progress=False)
    return {
        "bare": bare,
        "held": sonde.fit([Mahalanobis(), KNN(k=3)], rows(N, 0), progress=False),
        "kept": sonde.calibrate(bare, rows(N, 1), progress=False),
    }


@pytest.mark.truth("the p-values of each detector and site in the long table; the planted site")
@pytest.mark.parametrize(("name", "rule"), [("kept", "sum"), ("held", "twice_mean")])
def test_each_input_has_the_fused_p_and_the_planted_site(fits, name, rule):
    fitted, table = fits[name], scored(fits[name], rows(50, 2, far="b"))
    assert default_rule(fitted, keys_of(table), 0.05) == rule
    found = by_input(table, fitted)
    assert any("twice_mean" in note for note in found.notes) == (rule == "twice_mean")
    lines = found.table.to_pylist()
    assert [line["row"] for line in lines] == list(range(50))
    assert len({line["id"] for line in lines}) == 50
    want = with_fused(table, fitted, rule).slice(table.num_rows)
    of = dict(zip(want["id"].to_pylist(), want["p"].to_pylist(), strict=True))
    assert [line["p"] for line in lines] == [of[line["id"]] for line in lines]
    assert [line["alarm"] for line in lines] == [line["p"] <= 0.05 for line in lines]
    least = {}
    for line in table.to_pylist():
        least[line["id"]] = min(least.get(line["id"], 1.0), line["p"])
    assert [line["loudest_p"] for line in lines] == [least[line["id"]] for line in lines]
    assert {line["loudest_site"] for line in lines} == {"b"}
    assert {line["instrument"] for line in lines} == {f"fuse({rule})"}


@pytest.mark.truth("binomial: usual rows alarm at most at the stated rate, whatever the rule")
def test_usual_inputs_alarm_as_often_as_stated(fits):
    for name in ("kept", "held"):
        table = scored(fits[name], rows(1000, 3))
        alarms = by_input(table, fits[name], alpha=0.1).table["alarm"].to_pylist()
        assert np.mean(alarms) < 0.1 + 0.06
    naive = np.stack([part_of(table, key)["p"].to_numpy() for key in keys_of(table)]).min(0)
    assert (naive <= 0.1).mean() > 0.16


def test_what_is_not_known_is_null_and_said(fits):
    table = scored(fits["bare"], rows(20, 4))
    found = by_input(table, fits["bare"])
    assert "expected a p-value" in found.notes[0]
    for name in ("p", "alarm", "score", "site"):
        assert found.table[name].null_count == 20
    assert set(found.table["loudest"].to_pylist()) <= {"mahalanobis", "knn"}
    with pytest.raises(InputError, match="expected a p-value"):
        by_input(table, fits["bare"], rule="bonferroni")
    table = scored(fits["held"], rows(20, 4))
    found = by_input(table, fits["held"], alpha=0.001)
    assert found.table["alarm"].null_count == 20
    assert found.table["p"].null_count == 0
    assert "no p-value can be 0.001 or less" in found.notes[-1]


@pytest.mark.truth("by hand: of two rows the one of smaller p, and no p of both")
def test_several_rows_of_an_input_have_no_p_together(fits):
    fitted = sonde.fit(KNN(k=3), sonde.Stream.of({"a": torch.randn(90, 3)}), progress=False)
    lines = [
        {"id": i, "row": r, "position": at, "site": "a", "instrument": "knn", "score": s, "p": p}
        for i, r, at, s, p in (("x", 1, 0, 1.0, 0.5), ("x", 1, 1, 3.0, 0.1), ("y", 0, 0, 2.0, 0.2))
    ]
    found = by_input(pa.Table.from_pylist(lines), fitted, alpha=0.3)
    kept = ("id", "position", "score", "p", "alarm", "loudest_p")
    assert found.table.select(kept).to_pylist() == [
        dict(zip(kept, ("y", 0, 2.0, 0.2, True, 0.2), strict=True)),
        dict(zip(kept, ("x", 1, 3.0, None, None, 0.1), strict=True)),
    ]
    assert "1 input with several scored rows" in found.notes[0]
