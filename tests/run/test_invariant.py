"""Scores that no other input changes: an input alone, among few and among many has equal bits."""

import pytest
import torch

import sonde
from models import gpt2
from sonde.core.errors import InputError
from sonde.detect import KNN, Mahalanobis


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


def test_rows_that_were_read_are_refused():
    rows = sonde.Stream.of(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
    fitted = sonde.fit(Mahalanobis(), rows, progress=False)
    with pytest.raises(InputError, match="leave --batch-invariant out"):
        sonde.score(fitted, rows, batch_invariant=True, progress=False)
