"""Copies planted among fresh rows, and fresh rows alone."""

import numpy as np
import pytest
import torch
from torch import nn

from sonde import InputError, Model, load
from sonde_studies.parts.copies import is_lower, nearest, reach_below, shared
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


@pytest.mark.truth("which samples are copies, and which held-out rows are training rows")
def test_leaks_are_told_and_do_not_hide_copies():
    model, seen, held, fresh, draw = world(4)
    leaking = torch.cat([held, seen[:60]])
    copies = seen[torch.randperm(400, generator=draw)[:15]]
    samples = torch.cat([fresh[:60], copies])
    found = asked(model, samples, seen, leaking)
    assert found.verdict == "held rows leak"
    told = int(found.sentence.split(" of ")[0])
    assert 25 < told <= 60  # a third of the held-out rows is no control
    assert "take them out" in found.advice[1]
    assert asked(model, samples, seen, held).verdict == "copies"
    assert asked(model, fresh[:75], seen, leaking).verdict == "no copies found"


@pytest.mark.truth("all pairs of rows at once; all sets of runs of words")
def test_distances_in_blocks_and_shared_words(monkeypatch):
    draw = torch.Generator().manual_seed(8)
    x, others = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (23, 41))
    others[7] = x[3]
    monkeypatch.setattr("sonde_studies.parts.copies.CELLS", 230)
    near, which = nearest(x, others)
    want, place = torch.cdist(x, others).min(1)
    torch.testing.assert_close(near, want, atol=1e-6, rtol=0)
    assert torch.equal(which, place)
    assert near[3] == 0
    texts = ["The cat sat on a mat.", "one two", "A dog; the cat sat still"]
    most, number = shared(texts, ["no words", "the cat sat on a rug", "One two"])
    assert most.tolist() == [3 / 4, 1.0, 1 / 4]
    assert number.tolist() == [1, 2, 1]


@pytest.mark.slow
@pytest.mark.truth("the law of the draws: both samples alike")
def test_two_samples_drawn_alike_differ_as_often_as_the_level_says():
    draw = np.random.default_rng(5)
    p = [is_lower(draw.random(31).round(1), draw.random(54).round(1), k) for k in range(60)]
    assert sum(x <= 0.1 for x in p) <= 12
    one, other = np.r_[5 + draw.random(31), -1.0, -2.0], draw.random(54)
    assert reach_below(one, other, 0.001) == pytest.approx(33 * 32 / (87 * 86))
    assert is_lower(np.r_[np.zeros(9), draw.random(31)], draw.random(54), 1) < 0.01


@pytest.mark.slow
@pytest.mark.truth("which texts were edited from a training text")
def test_edited_copies_of_texts_are_found_by_their_words():
    draw = np.random.default_rng(1)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]

    def text():
        return " ".join(draw.choice(words, 30))

    training, held, fresh = ([text() for _ in range(n)] for n in (90, 90, 40))
    copies = [
        " ".join(w if draw.random() > 0.12 else draw.choice(words) for w in training[i].split())
        for i in range(12)
    ]
    parts = [[{"text": t} for t in part] for part in (copies + fresh, training, held)]
    found = replication_check(load("sonde:stdlib"), *parts, progress=False)
    assert found.verdict == "copies"
    assert found.facts["compared by"] == "words"
    assert {row["sample"]: row["training row"] for row in found.rows}.items() <= {
        i: i for i in range(12)
    }.items()
    clean = [parts[0][12:], *parts[1:]]
    assert replication_check(load("sonde:stdlib"), *clean, progress=False).level == "clear"


def test_it_refuses_few_rows():
    model, seen, held, fresh, _ = world(0)
    with pytest.raises(InputError, match="got 5, 400, 300"):
        asked(model, fresh[:5], seen, held)
