"""The page of `sonde score`: order, marks, what is shown without being asked, hostile text."""

import json
import math
import re

import pyarrow as pa
import pytest
import torch

from page_case import Page
from sonde.core import Stream
from sonde.detect import Mahalanobis
from sonde.report._exhibits import exhibit, marked
from sonde.report._heat import ColourScale
from sonde.report._markup import ElementIds
from sonde.report.scores import save_scores, scores_to_html
from sonde.run.fitting.fit import fit
from sonde.run.scoring.batches import SCHEMA
from sonde.run.scoring.exhibit import Exhibit, Exhibits
from sonde.run.scoring.score import score

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&amp;\x00\u202e"


def table(rows):
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    columns = [columns[0], [None] * len(rows), *columns[1:]]
    return pa.table(
        {f.name: pa.array(c, f.type) for f, c in zip(SCHEMA, columns, strict=True)}, schema=SCHEMA
    )


def drawn(found, **more):
    return exhibit(found, ColourScale.of(found.score), 0.05, ElementIds(), **more)


@pytest.fixture(scope="module")
def scored():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    x[7] += 30
    x[9, 0] = torch.nan
    ids = [f"person {i}" for i in range(60)]
    fitted = fit(Mahalanobis(), Stream.of(x[10:]), progress=False)
    stream = Stream.of(x, ids=ids)
    return fitted, stream, score(fitted, stream, progress=False)


@pytest.mark.truth("the two rows that were made unusual")
def test_the_most_unusual_come_first(scored):
    fitted, stream, found = scored
    page = scores_to_html(found, Exhibits(fitted, stream, inputs=True), alpha=0.2)
    seen = Page(page)
    assert seen.open == []
    cards = page.split('<article class="card example"')[1:]
    assert len(cards) == 8
    plain = [re.sub("<[^>]*>", "", card) for card in cards]
    assert "person 9" in plain[0]
    assert "infinite" in plain[0]
    assert "NaN" in plain[0]
    assert "person 7" in plain[1]
    assert "row7, counted from 0" in plain[1]
    few = scores_to_html(found, Exhibits(fitted, stream), alpha=0.01)
    n = fitted.result("mahalanobis").calibration.n
    assert f"too few</dt><dd>{n} calibration rows, but an alarm needs 99" in few
    assert "an alarm needs" not in page
    assert "alarm" in plain[1]
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_rows_without_ids_are_named_by_their_place_and_not_by_a_hash():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    x[7] += 30
    fitted = fit(Mahalanobis(), Stream.of(x[10:]), progress=False)
    stream = Stream.of(x)
    found = score(fitted, stream, progress=False)
    assert re.fullmatch("[0-9a-f]{32}", found["id"][7].as_py())
    for exhibits in (None, Exhibits(fitted, stream, inputs=True)):
        page = scores_to_html(found, exhibits)
        assert "Most anomalous: row 7" in re.sub("<[^>]*>", "", page)
        card = page.split('<article class="card example"')[1]
        top = re.sub("<[^>]*>", " ", card.partition("<dl")[0]).split()
        assert top[top.index("row") :][:2] == ["row", "7"]


def test_the_whole_has_no_position_and_marks_are_explained(scored):
    fitted, stream, found = scored
    page = scores_to_html(found, Exhibits(fitted, stream, inputs=True), alpha=0.2)
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "position" not in words.partition("Rows #")[0].partition("Most anomalous examples")[2]
    assert "An alarm mark means p of at most 0.2." in words
    heads = [re.sub("<[^>]*>", " ", t).split() for t in re.findall("<thead>.*?</thead>", page)]
    assert ["id", "row", "instrument", "site", "score", "p"] in heads


@pytest.mark.truth("by hand")
def test_the_median_is_a_score_and_no_threshold_stands_where_nothing_alarms():
    rows = [(f"r{i}", 0, "s", "knn", score, 0.5) for i, score in enumerate((1.0, 2.0, 3.0, 9.0))]
    words = " ".join(re.sub("<[^>]*>", " ", scores_to_html(table(rows))).split())
    summary = words.partition("Detectors and sites #")[2]
    assert "median score of the median row" in summary
    assert "knn s 4 2 9 0 % 0" in summary
    assert "threshold" not in words
    rows[-1] = (*rows[-1][:-1], 0.01)
    words = " ".join(re.sub("<[^>]*>", " ", scores_to_html(table(rows))).split())
    assert "Dashed: the threshold at a false-alarm rate of 5 %, 3." in words


@pytest.mark.truth("the position of the patch in the line")
def test_a_patch_has_a_position():
    page = scores_to_html(table([("a", 3, "s", "knn", 1.0, None), ("b", 0, "s", "knn", 0.5, None)]))
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "knn at s, position 3" in words
    assert "id position instrument" in words


def test_what_reads_the_logits_alone_is_at_the_logits():
    page = scores_to_html(table([("a", 0, "h.3:out", "msp", -0.5, 0.2)]))
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "msp at logits" in words
    assert "h.3" not in words.partition("</main>")[0].split("sonde-scores")[0]


def test_a_text_with_one_score_promises_no_marks():
    whole = drawn(Exhibit("text", [], [], [], pieces=["a ", "cat"], first=4))
    assert "so no token is marked" in whole
    assert "underlined" not in whole
    assert "underlined" in drawn(Exhibit("text", [4], [1.0], [None], pieces=["a "], first=4))


def test_inputs_stand_there_only_if_asked_for(scored):
    fitted, stream, found = scored
    bare = scores_to_html(found, Exhibits(fitted, stream))
    assert "Largest entries" not in bare
    assert "not shown (--show-inputs" in bare
    carried = re.search(r'id="sonde">(.*?)</script>', bare, re.S)
    assert carried is not None
    assert json.loads(carried[1])["shows_inputs"] is False


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("a", 0, "s", "knn", 1.0, None)],
        [("a", 0, "s", "knn", None, 0.1), ("b", 0, "s", "knn", math.inf, 0.1)],
    ],
)
def test_no_row_one_row_and_infinite_ones(rows, tmp_path):
    page = save_scores(table(rows), tmp_path / "s.html").read_text("utf-8")
    assert Page(page).open == []
    assert ("No rows were scored" in page) == (not rows)


def test_hostile_text_stays_text():
    page = scores_to_html(table([(HOSTILE, 0, HOSTILE, HOSTILE, 1.0, 0.01)]), title=HOSTILE)
    parts = {"position": [0, 1], "score": [1.0, 5.0], "p": [None, None]}
    for kind in ("text", "steps"):
        page += drawn(Exhibit(kind, **parts, pieces=[HOSTILE, HOSTILE]))
    seen = Page(page)
    assert seen.open == []
    assert seen.all("img") == []
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert "\u202e" not in page
    assert "\x00" not in page


@pytest.mark.truth("by hand")
def test_which_parts_are_marked():
    assert marked([1.0, 2.0, 3.0], [0.5, 0.01, 0.05], 0.05) == {1, 2}
    assert marked([1.0, 9.0, 3.0], [None] * 3, 0.05) == {1}
    assert marked(list(range(20)), [0.9] * 20, 0.05) == {19, 18, 17}
    assert marked([2.0, 2.0], [None] * 2, 0.05) == set()
    assert marked([], [], 0.05) == set()


def test_marks_are_read_without_colour_and_without_eyes():
    found = Exhibit("text", [4, 5, 6], [1.0, 9.0, math.inf], [0.5, 0.01, 0.2],
                    pieces=["a ", "cat", "\n"], first=4)  # fmt: skip
    page = drawn(found)
    mark = re.search(r"<mark [^>]*>.*?</mark>", page)
    assert mark is not None
    assert 'data-tip="token 5 · score 9 · p 0.01"' in mark[0]
    assert "(marked)" in mark[0]
    assert page.count("data-tip") == 3
    assert "score infinite" in page
    assert "Most anomalous tokens (3 rows)" in page


def test_the_marked_step_and_its_score():
    steps = Exhibit("steps", [0, 1], [0.1, 3.0], [None, None], pieces=["add 2 3", "5"])
    page = drawn(steps)
    items = re.findall(r"<li value=.*?</li>", page)
    assert len(items) == 2
    assert "marked: " in items[1]
    assert "score 3" in items[1]
    assert "marked" not in items[0]
    bare = drawn(Exhibit("steps", [0, 1], [0.1, 3.0], [None, None]))
    assert "<li" not in bare
    assert "Most anomalous steps (2 rows)" in bare


def test_an_image_and_its_map():
    grid = [(0, 0), (0, 1)]
    whole = Exhibit("image", [0, 1], [0.0, 2.0], [None] * 2, grid, torch.rand(3, 8, 16))
    made = Page(drawn(whole))
    assert [a["aria-label"] for a in made.all("svg") if a["class"] == "plot patches"] == [
        "The image as the model reads it",
        "Scores of 1 x 2 patches; the most anomalous, 2, lies in line 1, column 2",
    ]
    assert "Box: the most anomalous patch of the example" in drawn(whole)
    images = [str(a["href"]) for a in made.all("image")]
    assert len(images) == 2
    assert all(href.startswith("data:image/png;base64,") for href in images)
    alone = Page(drawn(Exhibit("image", [0, 1], [0.0, 2.0], [None] * 2, grid)))
    assert len(alone.all("image")) == 1
