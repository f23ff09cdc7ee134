"""The page of a drift: whole, self-contained, and the JSON that it was made of."""

import json
import re

import pytest
import torch

from page_case import Page
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.detect import KNN, Hotelling, UnitShift
from sonde.measure import Covariance
from sonde.report.documents import document_of, save_document, to_page, to_terminal
from sonde.report.files import sealed_page
from sonde.run.comparing.drift import drift
from sonde.run.comparing.drift_document import drift_document
from sonde.run.fitting.fit import fit

pytestmark = pytest.mark.slow


def _document(instruments=None, n=200):
    instruments = instruments or (Covariance(), UnitShift())
    sides = []
    for seed in (0, 1):
        rows = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
        rows[:, 2] += 2.0 * seed
        sites = {f"layers.{i}.<b>mlp</b>": rows * (i + 1) for i in range(2)}
        sides.append(fit(instruments, Stream.of(sites), progress=False))
    return drift_document(drift(*sides), *sides, names=("<i>one</i>.sonde", "two.sonde"))


@pytest.fixture(scope="module")
def moved():
    return _document()


def test_the_page_carries_its_json_and_every_section(moved):
    text = to_page(moved)
    page = Page(text)
    found = re.search(r'<script type="application/json" id="sonde">([^<]*)</script>', text)
    assert found is not None
    assert json.loads(found[1]) == moved
    ids = {attrs.get("id") for attrs in page.all("section")}
    assert ids == {"where", "units", "directions", "comparisons", "states"}
    assert not page.open or page.open == []
    assert "<i>one" not in text
    assert "<b>mlp" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    pictures = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(pictures) == 8  # four pictures in two widths


def test_the_page_of_nothing_that_could_be_tested():
    found = _document((Hotelling(),), n=3)
    text = to_page(found)
    assert "not tested" in text
    assert "No unit has a histogram" in text
    assert document_of(found).verdict == "Nothing could be tested"


def test_units_of_unknown_moves_are_listed_and_not_drawn():
    sides = []
    for seed in (0, 1):
        rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(seed))
        rows[:, 1:] = 10 + 0.1 * rows[:, 1:]
        rows[:, 0] += 2 * seed
        sides.append(fit(UnitShift(), Stream.of({"a": rows, "b": rows[:, 1:]}), progress=False))
    found = drift_document(drift(*sides), *sides)
    text = to_page(found)
    assert "unit 0" in text
    assert "unit 1" not in text
    assert "1 of 4 units moved at a" in text
    only = {**found, "sites": found["sites"][1:]}
    assert "No unit has a histogram" in to_page(only)


def test_text_fits_80_columns_and_names_what_moved(moved):
    for verbose in (False, True):
        text = to_terminal(moved, verbose=verbose)
        assert max(map(len, text.splitlines())) <= 80
        assert "2 of 2 sites moved at level 0.05" in text
        assert re.search(r"units 2 \(\+\d\.\d\d\)", text)


def test_every_column_and_question_is_explained(moved):
    text = to_terminal(moved, verbose=True)
    units = text.partition("Units that moved most clearly")[2].partition("The mean changed")[0]
    compared = text.partition("The mean changed")[2]
    for word in ("effect", "by sd"):
        assert f"\n{word}  " in units
    for word in ("value", "no change", "adjusted"):
        assert f"\n{word}  " in compared
    page = to_page(moved)
    for question in ("Anything", "Linear classifier", "Energy outside"):
        assert f"{question}: " in page
    assert "different rows on the two sides" in page


def test_it_is_saved_as_page_or_json(moved, tmp_path):
    page, plain = (save_document(moved, tmp_path / f"d.{kind}") for kind in ("html", "json"))
    assert page.read_text("utf-8") == sealed_page(to_page(moved))
    found = json.loads(plain.read_text("utf-8"))
    assert len(found.pop("hash")) == 32
    assert found == moved
    with pytest.raises(InputError, match=r"ends in \.html or \.json"):
        save_document(moved, tmp_path / "d.pdf")


@pytest.mark.truth("a float of 64 bits holds nothing between 0 and about 5e-324")
def test_a_p_value_too_small_for_a_float_is_not_told_as_zero(moved):
    tiny = json.loads(json.dumps(moved))
    for entry in (*tiny["sites"], *tiny["comparisons"]):
        entry["adjusted"] = entry["p"] = 0.0
    cells = re.findall(r'<t[dh][^>]*class="n"[^>]*>([^<]*)<', to_page(tiny))
    assert cells.count("&lt; 1e-300") >= len(tiny["sites"]) + 2 * len(tiny["comparisons"])
    assert "< 1e-300" in to_terminal(tiny)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_the_rounding_of_sums_in_another_order_is_no_direction(shift):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 16, generator=generator) + shift
    orders = (torch.arange(3000), torch.randperm(3000, generator=generator))
    one, other = (fit([Covariance(), KNN()], Stream.of(x[o]), progress=False) for o in orders)
    found = drift(one, other)
    assert found.rows == "same"
    assert found.directions["x"].length > 0
    assert found.directions["x"].beyond_noise == 0
    document = drift_document(found, one, other)
    assert document["direction"] is None
    assert "No mean changed significantly" in to_terminal(document)
    assert "No mean changed significantly" in to_page(document)
