"""Sites of a store by name: whole names, suffixes, patterns, and what a store cannot know."""

import pytest

from run_case import rows
from sonde.core.errors import SiteError
from sonde.core.stream import Stream
from sonde.store import Store, write_store

SITES = ["q", "a.0.q", "a.1.q", "a.1.q:in", "b.1.q", "b.1.v"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    x = {name: rows(3, seed=i) for i, name in enumerate(SITES)}
    return Store(write_store(Stream.of(x), tmp_path_factory.mktemp("select") / "a"))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("auto", SITES),
        ("q", ["q"]),
        ("q:out", ["q"]),
        ("q:in", ["a.1.q:in"]),
        ("a.1.q", ["a.1.q"]),
        ("0.q", ["a.0.q"]),
        ("v", ["b.1.v"]),
        ("*.q", ["a.0.q", "a.1.q", "b.1.q"]),
        ("1.*", ["a.1.q", "a.1.q:in", "b.1.q", "b.1.v"]),
        ("a.*", ["a.0.q", "a.1.q", "a.1.q:in"]),
        (["v", "0.q"], ["a.0.q", "b.1.v"]),
        ("q|flat", ["q"]),
    ],
)
def test_names_are_taken_as_in_a_model(store, pattern, found):
    assert [s.key for s in store.select(pattern).schema] == found


@pytest.mark.parametrize("pattern", ["1.q", "1.q:out", "1.q|flat"])
def test_a_suffix_of_several_sites_lists_them(store, pattern):
    with pytest.raises(
        SiteError, match=r"names 2 sites of .*: a.1.q:out, b.1.q:out. Give a longer part"
    ):
        store.select(pattern)


@pytest.mark.parametrize("pattern", ["blocks", "blocks:in", "logits", "a.-1.q", "-1"])
def test_what_only_a_model_knows_is_said(store, pattern):
    with pytest.raises(SiteError, match=r"no site .* know the model's modules.*has q,"):
        store.select(pattern)
