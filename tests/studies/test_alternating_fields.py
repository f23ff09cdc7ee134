"""Translators of ``alternating-fields``: as large as each other, and what they let fields tell."""

import pytest
import torch

from sonde_studies.alternating_fields import NARROW, FieldNet


@pytest.mark.truth("counts by hand")
def test_translators_are_as_large():
    sizes = {a: sum(p.numel() for p in FieldNet(a).translator.parameters()) for a in (False, True)}
    assert sizes[False] == 33 * 48 + 49 * 10
    assert sizes[True] == 4 * 17 * 16 + 33 * NARROW + (NARROW + 1) * 10
    assert sizes[True] == pytest.approx(sizes[False], rel=0.01)


@pytest.mark.truth("weights of a softmax over two fields, by the definition")
@torch.no_grad()
def test_fields_are_fused_by_attention_over_fields():
    torch.manual_seed(2)
    net = FieldNet(attends=True).double()
    fuse = net.translator[:3]
    fuse[1].out.weight.normal_()
    x = torch.randn(5, 2, 16, dtype=torch.float64)
    found = fuse(x.flatten(1)).unflatten(1, (2, 16))
    q, k, v = (fuse[1].maps[name](x).unflatten(2, (2, 8)) for name in ("query", "key", "value"))
    weight = (torch.einsum("rahd,rbhd->rhab", q, k) / 8**0.5).softmax(-1)
    heads = torch.einsum("rhab,rbhd->rahd", weight, v).flatten(2)
    torch.testing.assert_close(found, x + fuse[1].out(heads))
