"""Charts of results: drawn by a page, a file and a terminal that have never heard of the method."""

import json
import re
from dataclasses import dataclass
from typing import Any

import altair as alt
import pytest
import torch

import sonde
from sonde.core import Instrument, Result
from sonde.core.chart import Chart, bars, cells, curves, histogram, marks, matrix
from sonde.report.charts import chart_to_svg, chart_to_text, charts_document
from sonde.report.documents import to_page
from sonde.stats import Moments, MomentsState


@dataclass(frozen=True, kw_only=True)
class SharesResult(Result):
    """Shares of the variance, with a picture of its own."""

    def chart(self) -> Chart:
        """Return a bar for each direction."""
        values = torch.as_tensor(self.value).tolist()
        return bars(
            "Shares", [{"way": i, "amount": v} for i, v in enumerate(values)], "way", "amount"
        )


@dataclass(frozen=True)
class Shares(Instrument):
    """Shares of the variance along the main directions."""

    def reads(self) -> dict[str, Any]:
        return {"moments": Moments()}

    def result(self, moments: MomentsState) -> SharesResult:
        found = moments.eigenvalues
        return SharesResult(value=found / found.sum(), n=moments.n)


@pytest.mark.slow
def test_a_method_with_a_chart_stands_on_the_page_without_a_change_there() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 3, generator=draw) * torch.tensor([3.0, 1.0, 2.0])
    fitted = sonde.fit(Shares(), sonde.Stream.of({"a": rows}), progress=False)
    result = next(iter(fitted))[1]
    page = to_page(charts_document(fitted, "shares.sonde"))
    shares = torch.as_tensor(result.value).tolist()
    told = re.findall(r'data-tip="way: \d; amount: ([\d.]+)', page)
    assert [float(v) for v in told[:3]] == pytest.approx(shares, rel=2e-3)
    lines = chart_to_text(result.chart(), 60).splitlines()
    lengths = [line.count("█") for line in lines[1:4]]
    assert lengths[0] == max(lengths)
    assert [n / lengths[0] for n in lengths] == pytest.approx(
        [v / shares[0] for v in shares], abs=0.05
    )


CHARTS = {
    "curves": curves("C", [{"x": i, "y": i * i, "k": "a"} for i in range(9)], "x", "y", by="k"),
    "marks": marks("M", [{"s": "u", "v": 1.0, "a": 0.5, "b": 2.0}], "s", "v", low="a", high="b"),
    "bars": bars("B", [{"n": "x[3]", "v": 2.0}, {"n": "y", "v": float("nan")}], "v", "n"),
    "matrix": matrix("H", cells([[1.0, float("nan")], [0.0, 0.5]], "c", "r", "v"), "c", "r", "v"),
    "histogram": histogram("D", [{"a": 0.0, "b": 1.0, "n": 3}], "a", "b", "n", limit=0.7),
}


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.truth("the JSON Schema of Vega-Lite, which altair checks")
def test_every_kind_is_valid_vega_lite_and_drawn(name: str) -> None:
    chart = CHARTS[name]
    alt.Chart.from_dict(json.loads(json.dumps(chart, allow_nan=False)), validate=True)
    svg = chart_to_svg(chart)
    assert svg.startswith("<svg")
    assert "var(--" not in svg
    said = chart_to_text(chart, 50)
    assert chart["title"] in said
    assert max(map(len, said.splitlines())) <= 50


@pytest.mark.truth("the shapes of the drawing")
@pytest.mark.parametrize("lying", [True, False])
def test_several_bars_of_one_name_stand_side_by_side(lying: bool) -> None:
    values = [("a", "x", 0.8), ("a", "y", 0.5), ("b", "x", 0.3)]
    rows = [{"name": name, "share": share, "kind": kind} for name, kind, share in values]
    chart = bars("B", rows, *("share", "name")[:: 1 if lying else -1], by="kind")
    alt.Chart.from_dict(chart, validate=True)
    drawn = chart_to_svg(chart).partition("mark-rect role-mark")[2].partition("</g>")[0]
    found = re.findall(r'd="M([\d.]+),([\d.]+)h([\d.]+)v([\d.]+)h-', drawn)
    boxes = torch.tensor([[float(number) for number in one] for one in found])
    x, y, wide, high = (boxes if lying else boxes[:, [1, 0, 3, 2]]).T
    torch.testing.assert_close(wide / wide[0], torch.tensor([1.0, 0.625, 0.375]))
    ends = x if lying else x + wide
    assert torch.equal(ends, ends[:1].expand(3))  # all begin at zero
    assert bool((y[1:] >= (y + high)[:-1] - 1e-3).all())  # none lies over another


def test_two_sided_colours_of_a_matrix_are_equal_at_equal_distances_from_0() -> None:
    """A share of -0.03 beside shares up to 1 is almost colourless, not the darkest blue."""
    rows = cells([[1.0, -0.03], [0.2, float("nan")]], "c", "r", "v")
    scale = matrix("H", rows, "c", "r", "v", two_sided=True)
    found = scale.get("encoding") or scale["layer"][-1]["encoding"]
    assert found["color"]["scale"]["domain"] == [-1.0, 1.0]
