"""Results: bits, table, picture, and what a notebook gets."""

import json
import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from narrow import expect
from sonde.core.errors import ShapeError
from sonde.core.result import FLAGS, Result, Scorer, infinite_where_nonfinite


@dataclass(frozen=True, kw_only=True)
class Spectrum(Result):
    eigenvalues: Tensor
    note: str = ""


@pytest.mark.truth("1 nat = 1 / ln 2 bits")
def test_bits_convert_value_error_null_and_range():
    two = math.log(2.0)
    result = Result(value=2 * two, se=two / 4, null=two, unit="nats", range=(0.0, 3 * two))
    bits = result.bits()
    assert (bits.value, bits.se, bits.null, bits.unit) == pytest.approx((2.0, 0.25, 1.0, "bits"))
    assert bits.range == pytest.approx((0.0, 3.0))
    vector = Result(value=torch.tensor([two, 0.0]), unit="nats").bits()
    assert torch.allclose(expect(Tensor, vector.value), torch.tensor([1.0, 0.0]))
    assert vector.se is None
    unbounded = Result(value=1.0, unit="nats").bits()
    assert unbounded.range == (-math.inf, math.inf)
    with pytest.raises(ValueError, match=r"Result\.bits: expected nats, got 'bits'"):
        bits.bits()


def test_a_table_has_a_row_for_each_element():
    table = Result(value=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), se=0.5).table()
    assert table.to_pydict() == {"value": [1.0, 2.0, 3.0, 4.0], "se": [0.5] * 4}
    one = Result(value=2.0, null=1.0).table()
    assert one.to_pydict() == {"value": [2.0], "null": [1.0]}


def test_a_chart_is_json_whatever_the_numbers():
    chart = Result(value=torch.tensor([1.0, math.nan, math.inf]), unit="nats").chart()
    json.dumps(chart, allow_nan=False)
    assert [v["value"] for v in chart["data"]["values"]] == [1.0, None, None]
    assert chart["mark"]["type"] == "line"
    assert chart["encoding"]["y"]["title"] == "nats"
    assert Result(value=1.0).chart()["mark"]["type"] == "point"
    assert Result(value=1.0).chart()["title"] == "Result"


def test_a_notebook_gets_text_table_and_picture():
    bundle = Spectrum(value=1.5, eigenvalues=torch.ones(2))._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.vegalite.v5+json"}
    assert bundle["text/html"].startswith("<table><caption><b>Spectrum</b></caption>")
    assert "1.5" in bundle["text/html"]
    assert bundle["application/vnd.vegalite.v5+json"]["title"] == "Spectrum"
    long = Result(value=torch.arange(30.0))._repr_mimebundle_()["text/html"]
    assert long.partition("</table>")[2].count("<tr>") == 21
    assert "10 more rows" in long


def test_a_notebook_gets_name_value_error_rows_unit_and_flags():
    class Named(Result):
        title = "Bits < nats"

    result = Named(value=1.25, se=0.125, null=0.0, n=40, unit="nats", direction="higher",
                   flags=("sampled", "few_rows"), conventions={"rows": "<all>"})  # fmt: skip
    html = result._repr_mimebundle_()["text/html"]
    rows = dict(re.findall(r"<th scope='row'>(\w+)</th><td>([^<]*)</td>", html))
    assert rows["value"] == "1.25 ± 0.125 nats"
    assert (rows["null"], rows["n"], rows["direction"]) == ("0", "40", "higher means more")
    assert "<b>Bits &lt; nats</b>" in html
    assert "sampled: computed from a sample of the rows" in html
    assert f"few_rows: {FLAGS['few_rows']}" in html
    assert "&lt;all&gt;" in html


def test_a_result_is_told_on_one_line_whatever_it_holds():
    rows = torch.ones(200, 300)
    nested = Spectrum(value=rows, eigenvalues=rows, note="x" * 500, n=7, conventions={"a": "b"})
    assert repr(nested) == (
        "Spectrum(value=<200 x 300 float32>, n=7, eigenvalues=<200 x 300 float32>, note=<str>)"
    )
    assert repr(Result(value=math.nan, flags=("dead",))) == (
        "Result(value=nan, n=0, flags=('dead',))"
    )
    assert repr(Result(value=2 / 3, se=0.01, n=5)) == "Result(value=0.666667, se=0.01, n=5)"


def test_values_are_floats_and_flags_are_known():
    assert float(Result(value=torch.tensor(2.0))) == 2.0
    Result(flags=tuple(FLAGS))
    with pytest.raises(ValueError, match=r"Result: unknown flags \['fishy'\]"):
        Result(flags=("fishy",))


def test_rows_that_are_not_finite_score_infinity():
    x = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.0, -math.inf]])
    y = torch.tensor([[math.nan], [0.0], [0.0]])
    score = torch.tensor([1.0, 2.0, 3.0])
    assert infinite_where_nonfinite(score, x).tolist() == [1.0, math.inf, math.inf]
    assert infinite_where_nonfinite(score, x, y).tolist() == [math.inf] * 3
    finite = x.nan_to_num(0.0, 0.0, 0.0)
    assert infinite_where_nonfinite(score, finite) is score
    lost = torch.tensor([math.nan, 2.0, 3.0])
    assert infinite_where_nonfinite(lost, finite).tolist() == [math.inf, 2.0, 3.0]
    assert score.tolist() == [1.0, 2.0, 3.0]


@dataclass(frozen=True, kw_only=True)
class Sums(Scorer):
    def score(self, x: Tensor) -> Tensor:
        return infinite_where_nonfinite(x.sum(dim=1), x)


class Frame:
    """A table of another library: all that it promises is an array."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.truth("sums by hand")
@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3, 4]],
        np.array([[1.0, 2.0], [3.0, 4.0]], dtype=">f4"),
        np.broadcast_to(np.array([[1.0], [3.0]]), (2, 2)) + np.array([0, 1]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.int8),
        np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.longdouble),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True),
        Frame(),
    ],
)
def test_scores_of_what_fit_takes(rows):
    for found in (Sums().score(rows), Sums().score(x=rows)):
        assert found.is_floating_point()
        assert found.tolist() == [3.0, 7.0]


@dataclass(frozen=True, kw_only=True)
class SumsOfSites(Scorer):
    def score(self, x: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(x), dim=1).sum(dim=1)


@pytest.mark.truth("sums by hand")
@pytest.mark.parametrize("array", [torch.tensor, np.array])
@pytest.mark.parametrize("second", [[[10.0, 20.0], [30.0, 40.0]], [[30], [70]]])
def test_scores_of_rows_at_several_sites(array, second):
    sites = [array([[1.0, 2.0], [3.0, 4.0]]), array(second)]
    for given in (sites, tuple(sites)):
        found = SumsOfSites().score(given)
        assert found.dtype == torch.float64 or array is torch.tensor
        assert found.tolist() == [33.0, 77.0]


@pytest.mark.parametrize("row", [[1.0, 2.0], np.zeros(2), torch.zeros(2), torch.zeros(2, 2, 2)])
def test_one_row_alone_is_told_its_shape(row):
    with pytest.raises(ShapeError, match=r"Sums.score: expected rows \(row, dim\)"):
        Sums().score(row)


def test_words_are_no_rows():
    with pytest.raises(ShapeError, match="numbers"):
        Sums().score([["a"]])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Placed(Scorer):
    mean: Tensor

    def score(self, x: Tensor) -> Tensor:
        return (x - self.mean).sum(1)


def test_copies_on_other_devices_are_kept_but_not_pickled():
    scorer = Placed(value=0.0, mean=torch.zeros(3))
    far = torch.ones(2, 3, device="meta")
    assert scorer.score(far).device.type == "meta"
    (copied,) = scorer.copies.values()
    scorer.score(far)
    assert next(iter(scorer.copies.values())) is copied
    assert "copies" not in vars(pickle.loads(pickle.dumps(scorer)))
