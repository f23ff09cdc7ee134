"""Histograms that widen and rows from each range, against sorting and counting all rows."""

import pytest
import torch

from sonde.core import InputError
from sonde.core.hashing import rank_key
from sonde.stats import OctaveSample, ScaledHistogram, TopK

GENERATOR = torch.Generator().manual_seed(3)


def rows(n: int = 700, dim: int = 5) -> torch.Tensor:
    x = torch.randn(n, dim, generator=GENERATOR) * torch.tensor([1.0, 30.0, 1e-3, 1.0, 1.0])
    x[:, 3] = x[:, 3].relu()
    x[:, 4] = 0.0
    return x


def places(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.randint(-(2**62), 2**62, (n,), generator=GENERATOR) * 2
    return draw, torch.stack([draw, draw], 1), torch.arange(n)


@pytest.mark.truth("counting all rows above each edge")
def test_counts_above_every_edge():
    x = rows()
    concept = torch.randint(8, (700,), generator=GENERATOR)
    kind = ScaledHistogram(32, "bits")
    state = kind.observe(x[:50], concept[:50])
    for part in range(50, 700, 130):
        state = kind.update(state, x[part : part + 130], concept[part : part + 130])
    above = x[:, :, None] > state.edges
    assert torch.equal(state.above, above.sum(0))
    for k in range(3):
        member = (concept >> k) & 1 == 1
        assert torch.equal(state.concept_above[k], above[member].sum(0))
        assert state.concept_n[k] == member.sum()
    label = concept - 2  # negative: of no concept, yet a row
    by_label = ScaledHistogram(32, "label")
    first = by_label.observe(x[:50], label[:50].clamp(max=1))
    labelled = by_label.update(first, x[50:], label[50:])
    label[:50] = label[:50].clamp(max=1)
    assert torch.equal(labelled.counts, state.counts)
    want = torch.stack([above[label == k].sum(0) for k in range(6)])
    assert torch.equal(labelled.concept_above, want)
    zero = state.counts.shape[1] // 2
    assert torch.equal(state.above[:, zero], (x > 0).sum(0))
    reach = x[:, :4].abs().amax(0) / (state.edges[:4, -1] - state.edges[:4, -2])
    assert bool(((reach > 7.9) & (reach <= 16)).all())
    with pytest.raises(InputError, match="power of two"):
        ScaledHistogram(100)
    with pytest.raises(InputError, match="at most 62 concepts, got 63"):
        ScaledHistogram(4, "label").observe(x[:2], torch.tensor([0, 62]))


@pytest.mark.truth("sorting all rows of each range by draw")
def test_rows_of_each_range():
    x = rows()
    draw, ids, position = places(700)
    kind = OctaveSample(3, 2)
    state = kind.observe(x[:90], draw[:90], ids[:90], position[:90])
    for part in range(90, 700, 122):
        cut = slice(part, part + 122)
        state = kind.update(state, x[cut], draw[cut], ids[cut], position[cut])
    key = rank_key(draw)
    for unit in range(x.shape[1]):
        largest = x[:, unit].amax()
        octave = torch.where(x[:, unit] > 0, x[:, unit].log2().floor(), -torch.inf)
        band = (largest.log2().floor() - octave).nan_to_num(nan=9.0).clamp(max=2)
        for b in range(3):
            member = torch.nonzero(band == b).flatten()
            want = member[key[member].argsort()][:3]
            found = state.position[b, :, unit][state.filled[b, :, unit]]
            assert torch.equal(found, want), (unit, b)
            torch.testing.assert_close(
                state.values[b, : len(want), unit], x[want, unit], rtol=0, atol=0
            )


@pytest.mark.truth("sorting all rows by value, ties by draw")
def test_the_largest_by_updates():
    x = rows()
    draw, ids, position = places(700)
    kind = TopK(6)
    whole = kind.observe(x, draw, ids, position)
    state = kind.observe(x[:40], draw[:40], ids[:40], position[:40])
    for part in range(40, 700, 60):
        cut = slice(part, part + 60)
        state = kind.update(state, x[cut], draw[cut], ids[cut], position[cut])
    key = rank_key(draw).tolist()
    for unit, column in enumerate(x.T.tolist()):
        want = sorted(range(700), key=lambda row: (-column[row], key[row]))[:6]
        assert state.position[:, unit].tolist() == want
        assert state.values[:, unit].tolist() == [column[row] for row in want]
    assert torch.equal(state.position, whole.position)
    assert state.n == 700
