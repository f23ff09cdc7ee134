import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import sonde
from models import llama
from sonde.core import InputError
from sonde.edit import HeadSteering

SITES = ["model.layers.0.self_attn.o_proj:in", "model.layers.1.self_attn.o_proj:in"]


def planted(n=200, heads=4, width=3, seed=0):
    """Three sites of four heads; heads (0, 2) and (2, 1) know the label, the latter less well."""
    x = torch.randn(3, n, heads * width, generator=torch.Generator().manual_seed(seed)).double()
    label = torch.arange(n) % 2
    x[0, :, 6:9] += 3.0 * label[:, None]
    x[2, :, 4] += 3.0 * label
    return dict(zip("abc", x, strict=True)), label


@pytest.mark.truth("means and projections of the planted heads' own units, written out")
def test_the_planted_heads_are_found_and_pushed_along_their_own_means():
    x, label = planted()
    found = HeadSteering(heads=4, keep=2 / 12).fit(x, label)
    assert found.chosen.nonzero().tolist() == [[0, 2], [2, 1]]
    assert found.accuracy[0, 2] > found.accuracy[2, 1] > 0.9
    assert float((found.accuracy[~found.chosen] - 0.5).abs().max()) < 0.15
    for site, name, units in ((0, "a", slice(6, 9)), (2, "c", slice(3, 6))):
        rows = x[name][:, units]
        gap = rows[label == 1].mean(0) - rows[label == 0].mean(0)
        theta = gap / gap.norm()
        want = torch.zeros(12).double()
        want[units] = theta * (rows @ theta).std(correction=0)
        torch.testing.assert_close(found.push[site], want)
    assert not bool(found.push[1].any())
    assert list(found.edits(["a", "b", "c"])) == ["a", "c"]


def test_accuracy_is_not_that_of_the_rows_a_probe_was_made_from():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 512, generator=generator)
    label = torch.arange(40) % 2
    held_out = HeadSteering().fit({"a": x}, label).accuracy
    gap = x[label == 1].mean(0) - x[label == 0].mean(0)
    along = (x - x.mean(0)) @ gap
    assert float(((along > 0) == (label == 1)).float().mean()) == 1.0  # its own rows, all right
    assert abs(float(held_out) - 0.5) < 0.3
    twins = HeadSteering().fit({"a": x.repeat(2, 1)}, label.repeat(2), group=[*range(40)] * 2)
    assert abs(float(twins.accuracy) - 0.5) < 0.3


@pytest.mark.truth("the same shift in the bias of the output projection of a copy")
def test_only_chosen_heads_move_and_a_bias_does_the_same():
    model, ids = llama(), torch.arange(24).reshape(3, 8) + 4
    label = torch.arange(120) % 2
    generator = torch.Generator().manual_seed(2)
    rows = {site: torch.randn(120, 32, generator=generator) for site in SITES}
    rows[SITES[1]][:, 8:16] += 4.0 * label[:, None]
    found = HeadSteering(heads=4, keep=1 / 8).fit(rows, label)
    assert found.chosen.nonzero().tolist() == [[1, 1]]
    with torch.no_grad(), ExitStack() as stack:
        plain = model(ids).logits
        tap = stack.enter_context(sonde.Tap(model, SITES))
        model(ids)
        before = dict(tap.rows)
        for site, edit in found.edits(SITES, 2.0).items():
            stack.enter_context(sonde.editing(model, edit, site))
        got = model(ids).logits
        moved = tap.rows
    assert torch.equal(moved[SITES[0]], before[SITES[0]])
    gap = moved[SITES[1]] - before[SITES[1]]
    torch.testing.assert_close(gap, (2 * found.push[1]).float().expand_as(gap))
    assert not bool(gap[..., :8].any())
    assert not bool(gap[..., 16:].any())
    folded = copy.deepcopy(model)
    projection = folded.model.layers[1].self_attn.o_proj
    projection.bias = nn.Parameter(projection.weight.detach() @ (2 * found.push[1]).float())
    with torch.no_grad():
        want = folded(ids).logits
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())
    assert float((got - plain).abs().max()) > 1e-3


def test_errors_and_flags():
    x, label = planted()
    with pytest.raises(InputError, match="rows of 5 equal parts, one for each head, got dim=12"):
        HeadSteering(heads=5).fit(x, label)
    with pytest.raises(InputError, match=r"keep in \(0, 1\]"):
        HeadSteering(keep=0.0)
    with pytest.raises(InputError, match="rows of class 1 and of another class"):
        HeadSteering().fit(x, label * 0)
    with pytest.raises(InputError, match="expected the 3 sites of the fit, got 1"):
        HeadSteering().fit(x, label).edits(["a"])
    assert "dead" in HeadSteering().fit({"a": torch.ones(8, 2)}, [0, 1] * 4).flags
