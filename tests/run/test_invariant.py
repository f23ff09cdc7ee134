"""Scores that no other input changes: an input alone, among few and among many has equal bits."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import sonde
from models import gpt2
from sonde.core.errors import InputError
from sonde.detect import KNN, Mahalanobis
from sonde.run.scoring import invariant
from sonde.run.scoring.invariant import InvariantReader


def texts(n, seed):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (n,), generator=g).tolist()
    return [torch.randint(3, 60, (k,), generator=g).tolist() for k in lengths]


@pytest.fixture(scope="module")
def probe():
    model = gpt2()
    stream = sonde.read(model, texts(120, 0), sites="blocks", reducer="last")
    return model, sonde.fit([Mahalanobis(), KNN(k=3)], stream, progress=False)


def scored(model, fitted, items, **options):
    table = sonde.score(fitted, model, items, progress=False, **options)
    keys = zip(*(table[c].to_pylist() for c in ("id", "site", "instrument")), strict=True)
    found = zip(table["score"].to_pylist(), table["p"].to_pylist(), strict=True)
    return dict(zip(keys, found, strict=True))


@pytest.mark.slow
@pytest.mark.truth("the scores of the same texts read alone")
def test_a_text_has_the_bits_that_it_has_alone(probe):
    model, fitted = probe
    items = [[5], [7, 9], *texts(25, 1)]
    every = scored(model, fitted, items, batch_invariant=True)
    assert len(every) == len({tuple(item) for item in items}) * len(fitted.scorers)
    for some in (items[:1], items[3:4], items[1:9]):
        found = scored(model, fitted, some, batch_invariant=True)
        assert {key: every[key] for key in found} == found
    plain = scored(model, fitted, items)
    assert plain.keys() == every.keys()
    gaps = [abs(plain[key][0] - every[key][0]) / every[key][0] for key in every]
    assert max(gaps) < 1e-4


def plain_net(*sizes):
    torch.manual_seed(0)
    layers = [nn.Linear(5, sizes[0]), nn.ReLU(), nn.Linear(sizes[0], sizes[1])]
    return nn.Sequential(*layers).eval(), (5,)


def pooled_net():
    torch.manual_seed(0)
    layers = [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).eval(), (2, 9)


@pytest.mark.truth("the scores of the same inputs read alone")
@pytest.mark.parametrize("first", ["zeros", "any"])
@pytest.mark.parametrize("made", [plain_net(8, 1), plain_net(16, 3), pooled_net()])
def test_few_states_have_equal_bits_by_chance_in_one_example_not_in_all(made, first):
    model, shape = made
    generator = torch.Generator().manual_seed(3)
    each = [list(torch.randn(n, *shape, generator=generator)) for n in (60, 12)]
    stream = sonde.read(model, each[0], sites=["1"])
    fitted = sonde.fit([Mahalanobis(), KNN(k=3)], stream, progress=False)
    items = [torch.zeros(shape), *each[1]] if first == "zeros" else each[1]
    reader = InvariantReader(sonde.read(model, items, sites=["1"]), fitted, 32)
    inputs = reader.stream.inputs
    prepared = inputs.prepared(np.arange(len(items)))

    def scores(numbers):
        def make(chosen):
            which = [numbers[i] for i in chosen]
            return inputs.assembled(np.array(which), [prepared[i] for i in which])

        found = reader.read(make, len(numbers)).scored.values()
        return torch.stack([torch.as_tensor(one.score) for one in found])

    alone = torch.cat([scores([i]) for i in range(len(items))], dim=1)
    for size in (2, 5, 7, len(items)):
        assert torch.equal(scores([*range(size)]), alone[:, :size]), size


class PlaceDependent(nn.Linear):
    """Adds a last bit to each second input of a batch, as kernels with AVX-512 do for few units."""

    def forward(self, x):
        return super().forward(x) * (1 + 2.0**-22 * (torch.arange(len(x)) % 2)[:, None])


def in_order(table):
    kept = table.drop_columns(["row", "unit_shares"])  # shares are not promised to the last bit
    return kept.sort_by([("id", "ascending"), ("instrument", "ascending")])


@pytest.mark.truth("the scores of the same inputs read alone")
@pytest.mark.parametrize("where", ["forward", "scoring"])
def test_an_input_is_read_alone_where_its_place_changes_its_bits(where, monkeypatch):
    last = PlaceDependent(16, 64) if where == "forward" else nn.ReLU()
    model = nn.Sequential(nn.Linear(5, 16), last).eval()
    items = list(torch.randn(65, 5, generator=torch.Generator().manual_seed(5)))
    stream = sonde.read(model, items[:60], sites=["1"])
    fitted = sonde.fit([Mahalanobis(), KNN(k=3)], stream, progress=False)
    if where == "scoring":
        monkeypatch.setattr(invariant, "_smallest", lambda *_: invariant.ALONE)
    options = {"batch_invariant": True, "explain": 2, "progress": False}
    every = sonde.score(fitted, model, items[60:], **options)
    alone = [sonde.score(fitted, model, [item], **options) for item in items[60:]]
    assert in_order(every).equals(in_order(pa.concat_tables(alone)))


def test_rows_that_were_read_are_refused():
    rows = sonde.Stream.of(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
    fitted = sonde.fit(Mahalanobis(), rows, progress=False)
    with pytest.raises(InputError, match="leave --batch-invariant out"):
        sonde.score(fitted, rows, batch_invariant=True, progress=False)
