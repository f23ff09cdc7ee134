"""Code stripped step by step still does the same; distances counted by hand."""

import ast
import random
import textwrap

import pytest
import torch

from sonde import InputError, gather, load, read
from sonde_studies.code_strip import functions_of
from sonde_studies.parts.source import listing, without_comments, without_layout, without_names
from sonde_studies.recipes.code_strip import code_strip

TEXT = '''
def total(prices, rate=0.1):
    """Return the sum,
    with tax."""
    found = 0   # so far
    for price in prices:
        found += (price
                  * (1 + rate))  # with the rate
    note = "# kept"
    return found, note
'''


def ran(text, name, *args):
    names = {}
    exec(text, names)
    return names[name](*args)


@pytest.mark.truth("the code is run")
def test_every_step_still_does_what_the_code_did():
    want = ran(TEXT, "total", [2.0, 3.0])
    for strip in (without_names, without_comments, without_layout):
        assert ran(strip(TEXT), "v0", [2.0, 3.0]) == want
    bare, dense = without_comments(TEXT), without_layout(TEXT)
    assert "price" not in without_names(TEXT)
    assert "# so far" in without_names(TEXT)
    assert "tax" not in bare
    assert "# so" not in bare
    assert '"# kept"' in bare
    assert bare.count("\n") == TEXT.count("\n") - 1
    assert "(1 + v2)" in dense
    assert dense.count("\n") < bare.count("\n")
    assert "at 0x" not in listing(TEXT)
    assert "BINARY_OP" in listing(TEXT)


def test_the_functions_of_a_module_bear_it():
    for text in functions_of(textwrap):
        compile(without_layout(text), "", "exec")


@pytest.mark.slow
@pytest.mark.truth("mean squared distance in units of that between pieces, by hand")
def test_how_far_states_move_is_a_ratio_of_distances():
    texts = [*functions_of(random), *functions_of(ast)][:20]
    model = load("sonde:stdlib")
    found = code_strip(model, [{"text": t} for t in texts], site="layers.0", progress=False)

    def states(several):
        rows = []
        for text in several:
            got = gather(read(model, [{"text": text}], "layers.0", "mean", check=False), False)
            (x,), length = got.rows.values(), got.length
            assert length is not None
            rows.append((x.double() * length[:, None]).sum(0) / length.sum())
        return torch.stack(rows)

    plain, bare = states(texts), states([without_names(t) for t in texts])
    # over ordered pairs of pieces, a piece and itself among them
    between = torch.cdist(plain, plain).square().mean()
    want = (bare - plain).square().sum(1).mean() / between
    assert found.rows[0]["moved"] == pytest.approx(float(want), rel=1e-3)
    assert found.rows[-1]["random bytes"] is None


def test_what_cannot_be_parsed_is_counted():
    with pytest.raises(InputError, match="got 0 of 25"):
        code_strip(load("sonde:stdlib"), [{"text": f"def {i}:"} for i in range(25)], progress=False)
