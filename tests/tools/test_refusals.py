"""Refusals: counted in the code, and provoked with one thing wrong."""

import re

import pytest
from tools.refusals.__main__ import provoke, recorded
from tools.refusals.provoked import Place, cases
from tools.refusals.sites import Site, draw_sites, raise_sites

TRUE = {
    "the path is a folder": "expected a file, got the folder",
    "names of classes are a folder": "expected a file, got the folder",
    "the weights are a folder": "expected a file, got the folder",
    "the image has NaN": "expected finite pixels",
    "the size is 0": "of at least 1, got 0",
    "five pairs are changed": "True 5 times",
    "there are no outputs": "1 heads, 0 outputs",
    "a field has no unit": r"1 unit or more .* got \(4, 0\)",
    "the search width is 0": "search_width 0",
    "the other values are 3": r"of 80 rows .* got 3\.",
    "an expert is deeper": "only an expert has a tensor 3",
    "an expert is wider": r"shape \(7, 4\), that of the base \(6, 4\)",
    "there is no class": "at least one class",
    "the level is another": r"level 0\.95\).*level 0\.9\)",
    "a cost is NaN": "NaN or infinity in 'cost'",
    "two first errors in one": "got 2 in one",
    "alpha is 2": r"alpha in \(0, 1\), got 2",
    "the detector needs logits": "got one that reads logits",
    "a position is negative": r"from 0 on, got -1",
    "the answer is a number": "got answer=5",
}
"""Reasons that once named another cause: a size, a name or a path that was right."""


def test_every_raise_statement_is_a_site(tmp_path):
    folder = tmp_path / "src" / "sonde"
    folder.mkdir(parents=True)
    code = "class A:\n    def f(self):\n        raise InputError(\n            'a'\n        )\n"
    (folder / "a.py").write_text(code + "def g():\n    raise KeyError('b')\n")
    assert raise_sites(tmp_path) == [Site("src/sonde/a.py", "A.f", 1, 3, 5)]


def test_a_draw_does_not_change_with_other_sites():
    sites = [Site("a.py", f"f{i}", 1, i, i) for i in range(300)]
    drawn = draw_sites(sites, 50, 1)
    assert len(drawn) == 50
    assert drawn != draw_sites(sites, 50, 2)
    kept = [site for site in sites if site.first % 3 or site in drawn]
    assert draw_sites(kept, 50, 1) == drawn


@pytest.mark.slow
def test_each_call_is_refused_and_reasons_name_what_is_wrong(tmp_path):
    with recorded(raise_sites()) as met:
        reached = {wrong: provoke(call, met) for wrong, call in cases(Place.at(tmp_path))}
    answered = {
        wrong: text
        for wrong, (name, text, _) in reached.items()
        if name == "no refusal" and "violates type hint" not in text and "TypeCheck" not in text
    }
    assert answered == {}
    assert len(reached) > 110
    untrue = {
        wrong: reached[wrong].message
        for wrong, reason in TRUE.items()
        if not re.search(reason, reached[wrong].message)
    }
    assert untrue == {}
