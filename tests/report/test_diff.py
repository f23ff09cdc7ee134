import copy
import math
import re

import pytest

from sonde.report import diff, diff_to_html, diff_to_text, new_or_worse
from sonde.report._format import quantity

SWAPPED = {"new": "gone", "gone": "new", "worse": "better", "better": "worse"}


def _states(difference) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for entry in difference["findings"]:
        out.setdefault(entry["code"], []).append(entry["state"])
    return out


def _find(report, code: str):
    return next(f for f in report["findings"] if f["code"] == code)


def test_a_report_against_itself_has_nothing_new(report) -> None:
    made = diff(report, copy.deepcopy(report))
    assert {entry["state"] for entry in made["findings"]} == {"same"}
    assert "SND051" not in _states(made), "ignored findings take no part"
    assert not any(row["moved"] for row in made["figures"])
    assert made["differs"] == []
    assert "\nA and B: same model" in diff_to_text(made)


@pytest.mark.slow
def test_both_sides_and_what_differs_are_named(report) -> None:
    other = copy.deepcopy(report)
    other["provenance"]["data"] |= {"name": "week2.jsonl", "n_rows": 7}
    _find(other, "SND025")["figure"]["value"] = 0.02
    other["findings"] = [f for f in other["findings"] if f["code"] != "SND011"]
    model, data = (report["provenance"][part]["name"] for part in ("model", "data"))
    text = diff_to_text(diff(report, other))
    assert text.startswith(f"A: {model} on {data}\nB: {model} on week2.jsonl\nA and B differ in")
    assert "data: rows " in " ".join(text.split())
    page = " ".join(re.sub("<[^>]*>", " ", diff_to_html(report, other)).split())
    assert f"A {model} on {data} B {model} on week2.jsonl" in page
    assert "A to B" in page
    gone = page.partition("SND011 gone")[2]
    figure = _find(report, "SND011")["figure"]
    assert f" A {quantity(figure['value'], figure['unit'])} at " in gone.partition("SND")[0]
    assert "changed by more than three standard errors." in page


@pytest.mark.truth(
    "by hand: se = (high - low) / 3.92 in each report, 3 x their root sum of squares"
)
@pytest.mark.parametrize(("steps", "state"), [(2.9, "same"), (3.1, "better"), (-3.1, "worse")])
def test_a_figure_moves_at_three_combined_standard_errors(report, steps: float, state: str) -> None:
    other = copy.deepcopy(report)
    figure = _find(other, "SND025")["figure"]  # raised below its threshold: more is better
    se = math.sqrt(2) * (0.010 - 0.008) / 3.92
    for end in ("value", "low", "high"):
        figure[end] += steps * se
    assert _states(diff(report, other))["SND025"] == [state]


@pytest.mark.truth("quantile of the normal distribution from a printed table: 3.2905 at 99.9 %")
@pytest.mark.parametrize(("steps", "state"), [(2.9, "same"), (3.1, "better"), (-3.1, "worse")])
def test_a_wider_interval_is_read_at_its_own_confidence(report, steps: float, state: str) -> None:
    other = copy.deepcopy(report)
    old, new = (_find(r, "SND025")["figure"] for r in (report, other))
    old["confidence"] = new["confidence"] = 0.999
    for end in ("value", "low", "high"):
        new[end] += steps * math.sqrt(2) * (0.010 - 0.008) / (2 * 3.2905)
    assert _states(diff(report, other))["SND025"] == [state]


@pytest.mark.parametrize(("share", "state"), [(0.09, "same"), (0.12, "worse"), (-0.12, "better")])
def test_a_figure_without_an_interval_moves_by_a_tenth(report, share: float, state: str) -> None:
    other = copy.deepcopy(report)
    _find(other, "SND016")["figure"]["value"] *= 1 + share
    assert _states(diff(report, other))["SND016"] == [state]


def test_the_level_decides_before_the_figure(report) -> None:
    other = copy.deepcopy(report)
    _find(other, "SND016")["level"] = "warning"
    made = diff(report, other)
    assert _states(made)["SND016"] == ["worse"]
    assert [entry["code"] for entry in new_or_worse(made)] == ["SND016"]


def test_sites_are_matched_one_by_one(report) -> None:
    other = copy.deepcopy(report)
    _find(other, "SND025")["sites"] = ["model.layers.10:out", "model.layers.11:out"]
    entries = {
        e["state"]: e["sites"] for e in diff(report, other)["findings"] if e["code"] == "SND025"
    }
    assert entries == {
        "gone": ["model.layers.8:out", "model.layers.9:out"],
        "same": ["model.layers.10:out"],
        "new": ["model.layers.11:out"],
    }


def test_a_site_that_only_one_report_read_is_listed_and_not_judged(report) -> None:
    other = copy.deepcopy(report)
    for part in (other["sites"], _find(other, "SND025")["sites"]):
        for i, item in enumerate(part):
            if isinstance(item, dict):
                item["site"] = item["site"].replace("layers.10:", "layers.X:")
            else:
                part[i] = item.replace("layers.10:", "layers.X:")
    made = diff(report, other)
    assert made["only_a"] == ["model.layers.10:out"]
    assert made["only_b"] == ["model.layers.X:out"]
    assert sorted(_states(made)["SND025"]) == ["same", "unjudged", "unjudged"]


@pytest.mark.parametrize("part", ["reducer", "dtype"])
def test_another_reducer_or_type_is_not_called_better_or_worse(report, part: str) -> None:
    other = copy.deepcopy(report)
    where = other["provenance"] if part == "reducer" else other["provenance"]["model"]
    where[part] = "another"
    _find(other, "SND025")["figure"]["value"] = 0.5
    made = diff(report, other)
    assert made["comparable"] is False
    assert made["counts"]["worse"] == made["counts"]["better"] == 0
    assert _states(made)["SND025"] == ["unjudged"]
    assert "no finding is judged better or worse" in diff_to_text(made)


def test_new_after_withheld_says_so(report) -> None:
    other = copy.deepcopy(report)
    other["findings"].append(_find(other, "SND011") | {"code": "SND042", "because_of": None})
    made = diff(report, other)
    entry = next(e for e in made["findings"] if e["code"] == "SND042")
    assert (entry["state"], entry["before"]) == ("new", "withheld")
    assert "withheld in A" in diff_to_text(made)


def _changed(report):
    other = copy.deepcopy(report)
    del other["findings"][0]
    _find(other, "SND052")["level"] = "error"
    _find(other, "SND025")["figure"]["value"] = 0.04
    other["findings"].append(_find(other, "SND011") | {"code": "SND013", "sites": []})
    other["provenance"]["model"]["name"] = "<b>&"
    other["sites"][0]["values"]["median_norm"]["value"] *= 2
    return other


def test_the_other_way_round_says_the_opposite(report) -> None:
    other = _changed(report)
    one, two = _states(diff(report, other)), _states(diff(other, report))
    assert two == {code: [SWAPPED.get(s, s) for s in states] for code, states in one.items()}
    assert {"new", "gone", "worse", "better", "same"} == {
        s for states in one.values() for s in states
    }


@pytest.mark.slow
def test_text_fits_and_the_page_is_whole(report) -> None:
    other = _changed(report)
    made = diff(report, other)
    assert [(r["name"], r["site"]) for r in made["figures"] if r["moved"]] == [
        ("median_norm", "model.layers.0:out")
    ]
    for ascii_only in (False, True):
        text = diff_to_text(made, 80, ascii=ascii_only)
        assert all(len(line) <= 80 for line in text.splitlines())
    text = diff_to_html(report, other)
    assert "&lt;b&gt;&amp;" in text
    assert "<b>&" not in text
    assert "Median norm differs most at layers.0: 9 in A, 18 in B" in text
