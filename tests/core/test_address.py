"""Sites, reducers and row keys: read, printed, sorted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.core.errors import SiteError
from sonde.core.site import LATER_PORTS, PORTS, Reducer, Site, row_key


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("layers.12.mlp:out", Site("layers.12.mlp")),
        ("layers.12.mlp", Site("layers.12.mlp")),
        (":out", Site("")),
        ("", Site("")),
        ("relu@0", Site("relu", 0)),
        ("relu@last:in", Site("relu", "last", "in")),
        ("cell@all:grad", Site("cell", "all", "grad")),
        ("attn:out.1", Site("attn", None, "out", "1")),
        ("enc:out.last_hidden_state", Site("enc", None, "out", "last_hidden_state")),
        ("a.b-c_d@17:out.k", Site("a.b-c_d", 17, "out", "k")),
    ],
)
def test_a_text_names_a_site(text, site):
    assert Site.parse(text) == site


@pytest.mark.slow
@given(
    path=st.text("abc.019_", max_size=12),
    call=st.none() | st.integers(0, 99) | st.sampled_from(["last", "all"]),
    port=st.sampled_from(PORTS),
    key=st.none() | st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True),
)
def test_what_is_printed_is_read_again(path, call, port, key):
    site = Site(path, call, port, key)
    again = Site.parse(str(site))
    assert again == site
    assert type(again.call) is type(call)


@pytest.mark.parametrize("text", ["a:b:c", "a@", "a@first", "a@-1", "a@1@2", "a:out.", "a:out.x.y"])
def test_what_is_no_site_is_refused(text):
    with pytest.raises(SiteError, match=r"expected path\[@call\]:port\[\.key\]"):
        Site.parse(text)


def test_unknown_ports_are_named():
    with pytest.raises(SiteError, match=r"got 'outt'\. Did you mean out"):
        Site.parse("a:outt")
    for port in LATER_PORTS:
        with pytest.raises(SiteError, match=f"port '{port}' is not supported yet"):
            Site.parse(f"a:{port}")


def test_sites_sort_by_execution_and_the_order_is_no_part_of_the_address():
    texts = ["layers.10", "layers.2", "embed", "norm"]
    sites = [Site(t, order=i) for i, t in enumerate(texts)]
    assert sorted(reversed(sites)) == sites
    assert Site("a", order=1) == Site("a", order=2)
    assert len({Site("a", order=1), Site("a", order=2)}) == 1


def test_reducers():
    assert str(Reducer("mean")) == "mean"
    assert str(Reducer("patches", axis=1)) == "patches(axis=1)"
    assert str(Reducer("tokens", keep_special=True)) == "tokens+special"
    assert [Reducer(n).one_row for n in ("mean", "last", "cls", "flat", "tokens", "patches")] == [
        *[True] * 4,
        False,
        False,
    ]
    with pytest.raises(SiteError, match="Did you mean tokens"):
        Reducer("token")


def test_row_keys():
    assert row_key(Site("a")) == "a:out"
    assert row_key("a:out", Reducer("tokens")) == "a:out|tokens"
