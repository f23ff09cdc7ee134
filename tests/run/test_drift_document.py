import json

import pytest
import torch

from sonde.core.stream import Stream
from sonde.detect import Hotelling, UnitShift
from sonde.measure import Covariance
from sonde.run.comparing.drift import drift
from sonde.run.comparing.drift_document import SCHEMA, drift_document
from sonde.run.fitting.fit import fit
from sonde.run.fitting.state_sizes import state_sizes
from sonde.stats import LogHistogram


def _bundle(seed, move=0.0, **columns):
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(seed))
    rows[:, 2] += move
    return fit([Covariance(), UnitShift()], Stream.of({"a": rows, "b": rows[:, :3]}, **columns),
               progress=False)  # fmt: skip


@pytest.mark.slow
def test_what_moved_is_json_and_names_the_planted_unit():
    first, second = _bundle(0), _bundle(1, 1.5)
    found = drift_document(drift(first, second), first, second, names=("x", "y"))
    assert found["schema"] == SCHEMA
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["moved"] is True
    assert found["rows"] == "other"
    by_site = {s["site"]: s for s in found["sites"]}
    assert {s["moved"] for s in found["sites"]} == {True}
    assert [u["unit"] for u in by_site["a"]["units"] if u["moved"]] == [2]
    assert by_site["a"]["n_units_moved"] == 1
    assert by_site["b"]["n_units"] == 3
    assert by_site["a"]["direction"]["units"][0][0] == 2
    assert sum(v * v for v in found["direction"]["vector"]) == pytest.approx(1)
    assert found["second"]["name"] == "y"


@pytest.mark.slow
def test_a_unit_counts_only_where_the_units_moved_after_all_corrections():
    first, second = _bundle(2), _bundle(3)
    found = drift_document(drift(first, second), first, second, level=1e-12)
    assert found["moved"] is False
    assert not any(u["moved"] for s in found["sites"] for u in s["units"])


def test_units_that_a_histogram_cannot_tell_apart_are_unknown():
    sides = [torch.randn(200, 3, generator=torch.Generator().manual_seed(s)) for s in (5, 6)]
    for k, rows in enumerate(sides):
        rows[:, 1] = 10 + 0.2 * k + 0.1 * rows[:, 1]
    first, second = (fit(UnitShift(), Stream.of(rows), progress=False) for rows in sides)
    found = drift_document(drift(first, second), first, second)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    units = {u["unit"]: u for u in found["sites"][0]["units"]}
    assert (units[1]["effect"], units[1]["moved_by"], units[1]["p"]) == (None, None, None)
    assert list(units)[-1] == 1
    assert found["comparisons"][0]["flags"] == ["coarse"]
    assert any("lie within one bin" in note for note in found["notes"])


@pytest.mark.slow
def test_the_notes_say_what_p_values_are_about():
    first = _bundle(4)
    same = drift_document(drift(first, first), first, first)
    assert same["identical"]
    assert same["moved"] is False
    assert any("the same states" in note for note in same["notes"])
    other = _bundle(4, ids=[f"row {i}" for i in range(300)])
    apart = drift_document(drift(first, other), first, other)
    assert apart["rows"] == "other"


def test_nothing_that_was_tested_is_neither_moved_nor_not():
    wide = [
        fit(Hotelling(), Stream.of(torch.randn(5, 9, generator=torch.Generator().manual_seed(s))),
            progress=False)
        for s in (0, 1)
    ]  # fmt: skip
    found = drift_document(drift(wide[0], wide[1]), *wide)
    assert found["moved"] is None
    assert found["sites"][0]["moved"] is None
    assert found["comparisons"][0]["p"] is None


@pytest.mark.truth("bytes of the tensors by hand")
def test_states_and_their_bytes(tmp_path):
    bundle = _bundle(6)
    sizes = state_sizes(bundle)
    at = {(s["site"], s["statistic"]): s for s in sizes}
    assert at["a", "Moments"]["bytes"] == 8 * (4 + 16)
    assert at["a", "Moments"]["read_by"] == ["covariance"]
    assert at["a", "LogHistogram"]["read_by"] == ["unit_shift"]
    assert at["a", "LogHistogram"]["bytes"] == LogHistogram().size_bytes(4)
    assert at["a", "HashSample"]["read_by"] == ["error bars"]
    bundle.save(tmp_path / "b.sonde")
    total = sum(s["bytes"] for s in sizes)
    assert total <= (tmp_path / "b.sonde").stat().st_size <= total + 20_000
