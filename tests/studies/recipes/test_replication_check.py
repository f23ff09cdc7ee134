"""Copies planted among fresh rows, and fresh rows alone."""

import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde_studies.recipes.replication_check import replication_check


def world(seed):
    """Return a model and rows that lie on a curved sheet: training, held out, fresh."""
    draw = torch.Generator().manual_seed(seed)
    place = torch.randn(900, 3, generator=draw)
    x = torch.tanh(place @ torch.randn(3, 11, generator=draw)) + 0.02 * torch.randn(
        900, 11, generator=draw
    )
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(11, 17), nn.Tanh()).eval()
    return Model(net), x[:400], x[400:700], x[700:], draw


def asked(model, *parts, **options):
    return replication_check(model, *map(list, parts), site="1", progress=False, **options)


@pytest.mark.truth("which samples were made from a training row, and from which")
def test_copies_are_found_with_the_rows_that_they_copy():
    model, seen, held, fresh, draw = world(1)
    origin = torch.randperm(400, generator=draw)[:10]
    copies = seen[origin] + 0.005 * torch.randn(10, 11, generator=draw)
    samples = torch.cat([fresh[:90], copies, fresh[90:143]])
    found = asked(model, samples, seen, held)
    assert found.level == "error"
    assert found.verdict == "copies"
    pairs = {row["sample"]: row["training row"] for row in found.rows}
    assert pairs == {90 + i: int(row) for i, row in enumerate(origin)}
    assert 10 / 153 <= float(found.value) < 15 / 153


@pytest.mark.slow
@pytest.mark.truth("fresh rows, of which a share alpha may be called copies")
def test_fresh_rows_are_called_copies_as_often_as_allowed():
    shares = []
    for seed in range(2, 14):
        model, seen, held, fresh, _ = world(seed)
        found = asked(model, fresh, seen, held, alpha=0.1)
        shares.append(float(found.value))
    assert sum(shares) / len(shares) == pytest.approx(0.1, abs=0.03)


def test_it_refuses_few_rows():
    model, seen, held, fresh, _ = world(0)
    with pytest.raises(InputError, match="got 5, 400, 300"):
        asked(model, fresh[:5], seen, held)
