import base64
import copy
import hashlib
import html
import json
import re
from typing import Any

import altair as alt
import pytest

from page_case import Page
from sonde.report import to_html
from sonde.report._draw import picture as draw
from sonde.report._fit import fitted
from sonde.report._format import quantity
from sonde.report._markup import ElementIds
from sonde.report._picture import Axis
from sonde.report._pictures_answers import labels_picture, prediction_picture
from sonde.report._pictures_depth import depth_pictures
from sonde.report._pictures_sites import rank_90, similarity_picture, spectrum_picture
from sonde.report._pictures_units import units_picture
from sonde.report._pictures_versus import (
    detectors_picture,
    rows_pictures,
    scores_picture,
    shift_picture,
)
from sonde.report._section_findings import findings_section, header
from sonde.report._section_pictures import depth_section
from sonde.report._section_rows import rows_section, versus_section
from sonde.report._versus_words import sides
from sonde.report.html import MAX_BYTES, SECTIONS, wrong_section

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&amp;\x00\u202e"


def test_every_section_is_there_and_every_element_is_closed(page) -> None:
    seen = Page(page)
    assert seen.open == []
    assert [s["id"] for s in seen.all("section")] == [k for k in SECTIONS if k != "versus_model"]


def test_sides_are_counted_in_groups_where_groups_were_given(report, page) -> None:
    mine, theirs = sides(report)
    assert f"{mine}: 412 groups (1,797 rows). {theirs}: 600 rows." in page
    single = copy.deepcopy(report)
    single["provenance"]["data"]["group_column"] = None
    assert f"{mine}: 412 rows. {theirs}: 600 rows." in versus_section(single, ElementIds())


def test_a_bare_report_says_why_sections_are_empty(bare) -> None:
    page = Page(to_html(bare))
    said = {t.rstrip(": ") for t in page.texts["b"]}
    assert {"Labels", "Prediction by depth", "Second data set"} <= said
    kept = {str(s["id"]) for s in page.all("section")}
    assert kept.isdisjoint({"wrong", "answers", "labels", "prediction", "versus"})
    assert kept - {"measured"} < set(SECTIONS)
    said = " ".join(page.texts["li"])
    assert "--label-column" in said
    assert "--versus" in said


@pytest.mark.slow
def test_nothing_found_is_told_first_and_the_rest_is_folded(report, page) -> None:
    quiet = {**report, "findings": [], "versus": None}
    assert 'id="measured"' in to_html(quiet)
    drawer = page.index('id="measured"')
    assert page.index('id="findings"') < page.index('id="versus"') < drawer
    assert drawer < page.index('id="depth"')


def test_figures_have_units_and_columns_are_explained(report, page) -> None:
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    checks = words.partition("All checks #")[2]
    check = next(c for c in report["checks"] if c["figure"] and c["figure"]["unit"] == "share")
    figure = check["figure"]
    said = f"{quantity(figure['value'], 'share')} {figure['name'].replace('_', ' ')}"
    assert said in checks.partition(check["title"])[2]
    assert "--set CODE.LIMIT=X changes a limit" in checks
    rows = words.partition("Rows #")[2]
    assert "nearest neighbours with this label" in rows
    assert "z: log distance to the row's 5th neighbour" in html.unescape(rows)


def test_ids_are_distinct_and_links_lead_somewhere(page) -> None:
    seen = Page(page)
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in seen.all("a"):
        assert str(attrs["href"]).removeprefix("#") in ids
    used = {m for _, attrs in seen.tags for m in re.findall(r"url\(#([\w-]+)\)", str(attrs))}
    assert used <= set(ids)
    assert used


@pytest.mark.truth("hashlib over the text between the tags, as a browser hashes it")
def test_the_policy_allows_the_inline_style_and_script_and_nothing_else(page) -> None:
    seen = Page(page)
    policy = next(m["content"] for m in seen.all("meta") if "http-equiv" in m)
    inline = (
        re.search(r"<style>(.*?)</style>", page, re.S),
        re.search(r"<script>(.*?)</script>", page, re.S),
    )
    for found in inline:
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none';")
    assert "unsafe" not in str(policy)
    assert not any("style" in attrs for _, attrs in seen.tags)
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)


def test_nothing_in_the_page_points_outside(page) -> None:
    seen = Page(page)
    for _, attrs in seen.tags:
        for name in ("src", "href", "action", "data", "xlink:href", "srcset"):
            assert str(attrs.get(name, "#")).startswith(("#", "data:,"))
    assert "@import" not in "".join(seen.texts["style"])
    assert "url(" not in "".join(seen.texts["style"])


def test_the_page_carries_its_json(report, page) -> None:
    found = re.search(r'<script type="application/json" id="sonde">(.*?)</script>', page, re.S)
    assert found is not None
    assert json.loads(found[1]) == report


def _spoil(value: Any, names: dict[str, str]) -> Any:
    """Put hostile text wherever a user's text may stand; sites stay distinct."""
    free = {"label", "id", "id2", "predicted", "name", "title", "sentence", "why", "next", "how",
            "reason", "module", "reducer", "command", "column", "detector", "input"}  # fmt: skip
    lists = {"ids", "labels", "classes", "rows", "limits"}
    if isinstance(value, dict):
        spoiled = {}
        for key, item in value.items():
            if key in free and isinstance(item, str):
                spoiled[key] = f"{HOSTILE}{item}"
            elif key in lists and isinstance(item, list) and item and isinstance(item[0], str):
                spoiled[key] = [f"{HOSTILE}{x}" for x in item]
            else:
                spoiled[key] = _spoil(item, names)
        return spoiled
    if isinstance(value, list):
        return [_spoil(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


@pytest.mark.slow
def test_hostile_text_stays_text(report) -> None:
    names = {row["site"]: f"{row['site'].split(':')[0]}{HOSTILE}:out" for row in report["sites"]}
    spoiled = _spoil(report, names)
    spoiled["shows_inputs"] = True
    spoiled["provenance"]["versions"] = {HOSTILE: HOSTILE}
    page = Page(to_html(spoiled))
    assert page.open == []
    assert page.all("img") == []
    assert len(page.all("script")) == 2
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    said = "".join(text for texts in page.texts.values() for text in texts)
    assert "\x00" not in said
    assert "\u202e" not in said
    found = json.loads("".join(page.texts["script"]).split("\n", 1)[0].rsplit("}", 1)[0] + "}")
    assert found["findings"][0]["title"].startswith(HOSTILE)


def test_no_sign_of_a_name_can_end_the_process(report) -> None:
    signs = [chr(i) for i in (*range(0x00, 0x20), 0x7F, 0x85, 0x2028, 0xD800, 0xFFFE, 0xFFFF)]
    signs += [*"<>&\"'", "%", "\\", "{{", "é", "字", "👩‍🔬"]
    points = [{"x": i, "y": i, "id": f"a{sign}b", "label": sign} for i, sign in enumerate(signs)]
    report["rows"]["map"] = {"site": "s", "axes": [], "by": "label", "points": points}
    (picture,) = rows_pictures(report)
    drawn = draw(picture.draw(340), picture.message, "key", "narrow")
    assert Page(drawn).open == []
    assert drawn.count("data-tip") == len(signs)


def _large(report: dict[str, Any], count: int) -> dict[str, Any]:
    sites = [
        f"model.layers.{i}.{part}:out" for i in range(count // 2) for part in ("attention", "mlp")
    ]
    rows = []
    for i, site in enumerate(sites):
        row = copy.deepcopy(report["sites"][i % 12]) | {"site": site, "order": i}
        rows.append(row)
    n = len(sites)
    matrix = [[1 / (1 + abs(i - j)) for j in range(n)] for i in range(n)]
    report["sites"] = rows
    report["similarity"] = {"sites": sites, "cka": matrix, "se": matrix, "null": 0.0}
    report["units"] = [report["units"][i % 12] | {"site": site} for i, site in enumerate(sites)]
    report["labels"]["sites"] = [{"site": s, "value": 0.5, "se": 0.01} for s in sites]
    report["labels"]["best"] = sites[3]
    long = "x" * 150
    points = report["rows"]["map"]["points"]
    report["rows"]["map"]["points"] = [points[i % 400] | {"id": f"{long}{i}"} for i in range(1000)]
    for finding in report["findings"]:
        finding["sites"] = sites
    return report


@pytest.mark.slow
def test_the_page_stays_small_whatever_the_model(report) -> None:
    text = to_html(_large(report, 700))
    assert len(text.encode()) < MAX_BYTES
    assert "one per block is drawn" in text
    found = re.search(r'id="sonde">(.*?)</script>', text, re.S)
    assert found is not None
    carried = json.loads(found[1])
    assert any("leaves out" in limit for limit in carried["limits"])


def _pictures(report: dict[str, Any]) -> list[Any]:
    made = [
        *depth_pictures(report),
        similarity_picture(report["similarity"]),
        spectrum_picture(report),
        units_picture(report["units"]),
        labels_picture(report),
        prediction_picture(report["prediction"]),
        detectors_picture(report),
        shift_picture(report),
        scores_picture(report),
        *rows_pictures(report),
    ]
    assert all(made)
    return made


def _short(spec: Any) -> Any:
    """Return a chart with three rows of each of its tables; the schema says nothing of rows."""
    if isinstance(spec, dict):
        return {
            k: v[:3] if k == "values" and type(v) is list else _short(v) for k, v in spec.items()
        }
    return [_short(part) for part in spec] if isinstance(spec, list) else spec


@pytest.mark.slow
@pytest.mark.truth("the JSON Schema of Vega-Lite, which altair checks")
def test_every_picture_is_valid_vega_lite(report) -> None:
    for picture in _pictures(report):
        for width in (340, 770):
            alt.Chart.from_dict(_short(fitted(picture.draw(width), width)), validate=True)


def test_every_picture_says_its_message_and_shows_its_numbers(report, page) -> None:
    seen = Page(page)
    plots = [attrs for attrs in seen.all("svg") if "plot" in str(attrs.get("class"))]
    captions = {text.replace("\u00a0", " ") for text in seen.texts["figcaption"]}
    for picture in _pictures(report):
        drawn = [p for p in plots if p["aria-label"] == picture.message]
        assert {str(p["class"]).split()[1] for p in drawn} == {"wide", "narrow"}
        assert picture.message in captions
    tips = [attrs["data-tip"] for _, attrs in seen.tags if "data-tip" in attrs]
    row = report["sites"][5]
    expected = f"{row['values']['spread']['value']:.3g}"
    assert any(tip and tip.startswith(row["site"]) and expected in tip for tip in tips)


def test_tiny_shares_are_not_cut_at_the_edge(report) -> None:
    for site in report["sites"]:
        if "spectrum" in site["curves"]:
            site["curves"]["spectrum"]["y"][-1] = 3e-9
    page = depth_section(report, ElementIds())
    ticks = set(re.findall(r">([\d.e-]+%)</text>", page))
    assert "1e-4%" in ticks
    assert max(map(len, ticks)) <= 5


@pytest.mark.truth("brute force: cumulative sum of the whole spectrum")
def test_rank_from_a_thinned_spectrum_is_near_the_true_one() -> None:
    import numpy as np

    index = np.arange(1, 769)
    spectrum = index**-1.1 / (index**-1.1).sum()
    true = int(np.searchsorted(np.cumsum(spectrum), 0.9)) + 1
    kept = np.unique(np.round(np.geomspace(1, 768, 48)).astype(int))
    thin = {"x": kept.tolist(), "y": spectrum[kept - 1].tolist()}
    assert abs(rank_90(thin, 768) - true) <= 0.02 * true


@pytest.mark.slow
def test_values_that_are_missing_leave_gaps_and_no_error(report) -> None:
    report["sites"][4]["values"]["spread"]["value"] = None
    report["similarity"]["cka"][2][3] = None
    report["labels"]["sites"][1]["value"] = None
    report["versus"]["sites"][0]["auroc"] = None
    report["findings"][0]["figure"]["value"] = None
    report["findings"][1]["figure"] = None
    report["sites"][9]["values"]["update_per_spread"] = {"value": 0.0, "se": None}
    text = to_html(report)
    assert "NaN" not in text
    assert "smallest difference is 0 % at" in text.replace("&nbsp;", " ").replace("\u00a0", " ")


def test_inputs_are_shown_only_when_the_report_says_so(report) -> None:
    report["rows"]["map"] = None
    report["rows"]["far"][0]["input"] = "canary-7"
    assert "canary-7" not in rows_section(report, ElementIds())
    report["shows_inputs"] = True
    assert "canary-7" in rows_section(report, ElementIds())
    assert "--no-inputs" in header(report)


def test_wrong_inputs_stand_by_pair_with_their_picture_or_text(report) -> None:
    rows = report["rows"]["answers"]
    rows[0]["input"] = "data:image/png;base64,AAAA"
    rows[1]["input"] = "weight 3.1 (z +9.0)\nheight 2 (z -4.0)"
    made = wrong_section(report, ElementIds())
    assert made is not None
    page = Page(made)
    assert page.texts["h3"] == ["refund called billing: 1 row", "shipping called delivery: 1 row"]
    assert [image["src"] for image in page.all("img")] == [rows[0]["input"]]
    assert "weight 3.1 (z +9.0)" in page.texts["p"]
    assert "2 of 3 rows are wrong" in made
    assert "left out" in made


def test_a_stopped_run_says_how_far_it_came(report) -> None:
    report["partial"] = {"done": 40, "total": 100}
    assert "Stopped after 40 %: 40 of 100 units" in header(report)


def test_short_names_of_sites_are_distinct() -> None:
    for sites in (
        ["a"],
        ["layers", "layers.0"],
        ["m.layers.1:out", "m.layers.11:out", "m.layers.111:out"],
        ["x.0:out", "x.0:in"],
        ["net.0@0:out", "net.0@1:out"],
    ):
        names = Axis.of(sites).names
        assert len(set(names.values())) == len(sites)
        assert all(names.values())


def test_what_reads_logits_is_at_the_logits_and_no_p_value_is_zero(report) -> None:
    versus = report["versus"]
    row = {"site": "h.3:out", "auroc": 0.8, "low": 0.7, "high": 0.9}
    changed = {
        **versus,
        "detectors": [{**row, "method": "MSP"}, {**row, "method": "KNN"}],
        "alarm": {**versus["alarm"], "p": 0.0},
    }
    page = versus_section({**report, "versus": changed}, ElementIds())
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "MSP logits 0.8" in words
    assert "KNN h.3:out 0.8" in words
    assert "p-value &lt; 1e-300" in words


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            0.01,
            "1 site of 12 differs from the site before by less than 5 % of its standard "
            "deviation; the smallest difference is ",
        ),
        (
            0.5,
            "Every site differs from the site before; the smallest difference, in standard "
            "deviations, ",
        ),
    ],
)
def test_small_changes_are_counted_by_site_not_by_block(report, value: float, said: str) -> None:
    other = copy.deepcopy(report)
    for i, row in enumerate(other["sites"]):
        row["values"]["update_per_spread"] = {"value": 0.6 if i else value, "se": None}
    made = next(p for p in depth_pictures(other) if p.key == "depth-update_per_spread")
    assert made.message.startswith(said)


def test_a_figure_without_groups_is_told_in_rows(report) -> None:
    spoiled = json.loads(json.dumps(report))
    for finding in spoiled["findings"]:
        finding["figure"] |= {"n_groups": 0, "n_rows": 4321}
    page = findings_section(spoiled)
    assert "4,321 rows</figcaption>" in page
    assert " 0 groups" not in page
