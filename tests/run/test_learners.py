"""Learners through the runs that users start: live models, processes, the command line's words."""

from typing import Any

import pytest
import torch

from sonde import load
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.detect import FOD, SimpleNet
from sonde.run.fitting.fit import fit
from sonde.run.instruments.words import parse_methods
from sonde.run.reading.read import read
from sonde.run.scoring.score import score

NET = SimpleNet(passes=2, steps=1, hidden=16, batch=64)
GRID = FOD(width=8, heads=2, layers=1, passes=2, batch=16, rate=1e-2)


@pytest.mark.slow
def test_learners_train_here_whatever_the_workers_and_give_the_same_bits(tmp_path):
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    ids = [str(i // 4) for i in range(300)]
    source = Stream.of(x, ids=ids, position=[i % 4 for i in range(300)])
    saved = [
        fit([NET, GRID], source, unit_size=64, **how, progress=False).save(tmp_path / "a.sonde")
        for how in ({"workers": 0, "threads": 1}, {"workers": 2})
    ]
    assert saved[0] == saved[1]


@pytest.mark.slow
def test_learners_train_on_patches_of_a_live_model():
    model = load("sonde:digits")
    options: dict[str, Any] = {"sites": "vit.layers.1", "reducer": "patches"}
    stream = read(model, "sonde:digits/train", limit=60, **options)
    fitted = fit([NET, GRID], stream, progress=False)
    grid = fitted.result(FOD)
    held = grid.calibration.n
    assert grid.scorer.conventions["images"] == 60 - held
    assert fitted.result(SimpleNet).n == (60 - held) * 16
    table = score(fitted, model, "sonde:digits/test", limit=5, progress=False)
    assert table.num_rows == 10
    assert all(p >= 1 / (held + 1) for p in table["p"].to_pylist())


def test_words_of_methods_may_have_hyphens_and_values_keep_them():
    assert parse_methods("simple-net(passes=3), fod,max-logit")[0] == SimpleNet(passes=3)
    with pytest.raises(InputError, match="expected sigma, margin"):
        parse_methods("simple-net(sigma=-1.0)")
    with pytest.raises(InputError, match="'a-b'"):
        parse_methods("ash(variant='a-b')")
