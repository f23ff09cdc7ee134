"""What pictures and tables say of themselves: scales, level lines, empty cells, where rows are."""

from typing import Any

import pytest

from sonde.report import check_report, to_html
from sonde.report._fit import WIDE, fitted
from sonde.report._markup import ElementIds
from sonde.report._pictures_answers import prediction_picture
from sonde.report._pictures_depth import PANELS, depth_pictures
from sonde.report._pictures_sites import similarity_picture, spectrum_picture
from sonde.report._pictures_units import units_picture
from sonde.report._section_pictures import labels_section


def log_axes(spec: Any) -> list[str | None]:
    """Return the title of every logarithmic axis of a chart, at any depth."""
    if isinstance(spec, list):
        return [title for item in spec for title in log_axes(item)]
    if not isinstance(spec, dict):
        return []
    own = [spec["title"]] if spec.get("scale", {}).get("type") == "log" else []
    return own + [title for item in spec.values() for title in log_axes(item)]


def test_every_logarithmic_axis_says_so(report) -> None:
    panels = {made.key.removeprefix("depth-"): made for made in depth_pictures(report)}
    for panel in PANELS:
        titles = log_axes(fitted(panels[panel.name].draw(WIDE), WIDE))
        assert bool(titles) == panel.log
        assert set(titles) <= {"log scale"}
    for made in (spectrum_picture(report), units_picture(report["units"])):
        assert made is not None
        titles = log_axes(fitted(made.draw(WIDE), WIDE))
        assert titles
        assert all(title and "log scale" in title for title in titles)


def test_a_level_line_is_named_where_the_curve_is_not(report) -> None:
    sites = [row["site"] for row in report["prediction"]["sites"]]
    falling = [{"site": s, "value": 6.0 - i, "se": 0.0} for i, s in enumerate(sites[:5])]
    made = prediction_picture({"sites": falling, "unigram": 6.0, "final": 2.0, "n_rows": 9})
    assert made is not None
    layers = made.draw(WIDE)["layer"]
    texts = [part for part in layers if part["mark"]["type"] == "text"]
    sides = {part["data"]["values"][0]["name"]: part["mark"]["align"] for part in texts}
    assert sides == {"token frequencies": "right", "final": "left"}


def test_empty_cells_are_explained_where_there_are_some(report) -> None:
    similarity = report["similarity"]
    similarity["cka"] = [[1.0 for _ in row] for row in similarity["cka"]]
    made = similarity_picture(similarity)
    assert made is not None
    assert "Empty" not in made.note
    similarity["cka"][0][1] = 0.0
    made = similarity_picture(similarity)
    assert made is not None
    assert "Empty cells: no more similar than two unrelated sites." in made.note


def test_labels_that_were_given_are_not_called_missing(report) -> None:
    report["labels"] = None
    report["provenance"]["data"]["label_column"] = None
    assert "No labels were given (--label-column)." in labels_section(report, ElementIds())
    report["provenance"]["data"]["label_column"] = "given"
    reason = "needs 30 rows in each of two classes, 18 present"
    report["checks"].append(report["checks"][0] | {"code": "SND036", "reason": reason})
    page = labels_section(report, ElementIds())
    assert "Labels were given, but no probe could be evaluated: needs 30 rows in each" in page
    assert "No labels were given" not in page


@pytest.mark.slow
def test_rows_are_named_by_where_they_are_found(report) -> None:
    report["rows"]["near_duplicates"] = [
        {"id": "i1", "id2": "i2", "places": ["a/1.png", "b/2.png"], "site": "s", "ratio": 0.1}
    ]
    finding = report["findings"][0]
    finding.update(rows=["i3"], places=["cats/7.png"])
    check_report(report)
    page = to_html(report)
    assert "a/1.png, b/2.png" in page
    assert "cats/7.png</" in page
    assert "ids of the rows" in page
    assert ">where</th>" in page
