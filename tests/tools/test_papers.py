import json

import pytest

from cli_case import run_words
from sonde.cli.methods import _papers, _squeezed
from tools import papers, rows


def test_the_index_of_the_command_is_that_of_the_list():
    assert papers.INDEX.read_text("utf-8") == papers.as_json()


def test_a_paper_that_a_method_cites_is_found_and_parts_of_other_words_are_not():
    for words, code in (("task arithmetic", "edit.TaskArithmetic"), ("ROME", "edit.RankOneEdit"),
                        ("is attention interpretable", "explain.AttentionTimesGradient"),
                        ("TIES", "edit.Ties"), ("mass-editing mem", "edit.BatchEdit")):  # fmt: skip
        assert code in _papers(words)[0]["code"], words
    assert not _papers("ommon sens")


@pytest.mark.slow
def test_every_system_is_found_by_its_name_a_word_of_its_title_and_its_first_author():
    """Words of a title may be shared, but the system itself is always among the found."""
    listed = json.loads(papers.INDEX.read_text("utf-8"))
    assert len(listed) > 190
    for paper in listed:
        longest = max(paper["title"].split(), key=len)
        first = paper["authors"].partition(",")[0]
        for words in (paper["name"], paper["name"].upper(), paper["title"], longest, first):
            found = [(p["name"], p["key"]) for p in _papers(words)]
            assert not words or (paper["name"], paper["key"]) in found, words
        assert _squeezed(_papers(paper["name"])[0]["name"]) == _squeezed(paper["name"])


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("ip adapter", ["sonde.layers.DecoupledCrossAttention", "(Ye et al., 2023)"]),
        ("colbert", ["sonde recipe feature-fusion", "sonde study feature-fusion"]),
        ("idioms", ["not here: generation of code and of type definitions"]),
    ],
)
def test_the_command_says_where_a_system_is(words, lines):
    said = run_words("methods", "--paper", words)
    assert said.code == 0, said.err
    assert all(line in said.out for line in lines)


def test_authors_that_are_not_known_say_so():
    assert papers.authors_of({"author": "others"}) == papers.UNKNOWN
    assert papers.authors_of({}) == papers.UNKNOWN
    assert papers.authors_of({"author": "Ye, Hu and others"}) == "Ye et al."
    many = " and ".join(f"{name}, A." for name in ("One", "Two", "Three", "Four"))
    assert papers.authors_of({"author": many}) == "One, Two, Three et al."
    accents = r"""{\'e}t{\"i}c and Gar{\c{c}}on"""
    assert papers.plain(accents) == "etic and Garcon"


@pytest.mark.slow
def test_the_page_has_an_entry_for_each_system_and_key():
    bib, listed = papers.bibliography(), rows.rows_of()
    assert {row.paper for row in listed} <= bib.keys()
    assert not [key for key, fields in bib.items() if "not known" in fields["title"]]
    page = papers.papers_page(bib)
    systems, _, keys = page.partition("## Bibliography")
    for row in listed:
        own = systems.partition(f"### {row.system}\n")[2].partition("\n### ")[0]
        assert bib[row.paper]["title"] in own, row
        names = [code.partition("(")[0].rpartition(".")[2].replace("_", "-") for code in row.code]
        assert all(name in own.replace("_", "-") for name in names), row
        assert row.missing.removeprefix("closed: ") in own, row
        assert ("**" in own) == bool(row.main), row
    assert all(f"- `{key}`: " in keys for key in bib)
