"""Copies of rows tell nothing new: what measures say of rows that come several times."""

import math

import numpy as np
import pytest
import torch

import sonde
from narrow import present
from sonde import measure
from sonde.core.stream import Stream
from sonde.engine.copies import copied_rows
from sonde.explain import Probe

N, TIMES = 150, 4
PAIRS = {
    "cca": {}, "svcca": {}, "pwcca": {}, "procrustes": {}, "cka": {}, "gulp": {}, "mutual_knn": {},
    "cknna": {"k": 5}, "mutual_information": {}, "information_imbalance": {},
    "kernel_cka": {"sigma": 2.0, "m": 16}, "cauchy_schwarz_information": {"sigma": 2.0},
}  # fmt: skip


def unrelated(seed):
    """Return unrelated sites and classes, and an order in which each row comes four times."""
    random = np.random.default_rng(seed)
    x, y, label = (
        random.standard_normal((N, 4)),
        random.standard_normal((N, 3)),
        random.integers(3, size=N),
    )
    return x, y, label, random.permutation(np.tile(np.arange(N), TIMES))


@pytest.mark.truth("four copies of each row hold what the rows hold: same null, same error")
@pytest.mark.parametrize("name", PAIRS)
def test_copies_of_unrelated_rows_tell_no_more_than_the_rows(name):
    x, y, _, order = unrelated(3)
    once, copied = (
        getattr(measure, name)(x[rows], y[rows], **PAIRS[name]) for rows in (np.arange(N), order)
    )
    assert "copies" in copied.flags
    assert "450 of 600 rows are copies of another row" in copied.conventions["copies"]
    assert "copies" not in once.flags
    spread = float(once.se)
    assert abs(float(copied.value) - float(once.value)) < 0.6 * spread
    assert abs(float(copied.null) - float(once.null)) < 0.6 * spread
    assert 0.6 < float(copied.se) / spread < 1.7


@pytest.mark.truth("classes by lot: a probe of copied rows is no better than chance")
def test_copies_do_not_lie_on_both_sides_of_a_fold():
    found = []
    for seed in range(6):
        x, _, label, order = unrelated(seed)
        found.append(float(Probe().fit(x[order], label=label[order]).value))
    assert np.mean(found) < 1 / 3 + 3 * np.sqrt(2 / 9 / N / 6)


@pytest.mark.truth("the estimate for the rows without copies")
def test_nearest_neighbours_are_no_copies_of_the_row():
    """Also for rows that are given different ids, and where few rows come often."""
    x, y, *_ = unrelated(5)
    some = np.r_[np.tile(np.arange(30), 6), np.arange(30, N)]
    once = measure.mutual_information(x[:, :2], y[:, :2], estimator="ksg")
    several = {"a": x[some, :2], "b": y[some, :2]}
    streams = [Stream.of(several, ids=range(len(some))), Stream.of(several)]
    fits = [
        sonde.fit(measure.MutualInformation(estimator="ksg"), stream, progress=False)
        for stream in streams
    ]
    for found in (measure.mutual_information(*several.values(), estimator="ksg"),
                  *(f.result("mutual_information") for f in fits)):  # fmt: skip
        assert found.value == pytest.approx(once.value, abs=1e-9)
        assert "copies" in found.flags


@pytest.mark.truth("psi(n) - psi(k): the largest value that the formula can take")
def test_the_information_of_a_site_with_itself_is_beyond_its_neighbours():
    x, *_ = unrelated(5)
    found = measure.mutual_information(x[:, :2], x[:, :2], estimator="ksg")
    limit = float(torch.special.digamma(torch.tensor(N)) - torch.special.digamma(torch.tensor(4)))
    assert found.value == pytest.approx(limit, rel=1e-6)
    assert "saturated" in found.flags
    assert found.se is None
    near = measure.mutual_information(x[:, :2], x[:, :2] + 0.5 * x[:, 2:], estimator="ksg")
    assert "saturated" not in near.flags


def test_rows_that_are_equal_by_chance_are_no_copies():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=random)
    dice = torch.randint(6, (400, 2), generator=random).double()
    one_hot = torch.eye(10)[torch.randint(10, (400,), generator=random)]
    states = torch.eye(8)[torch.randint(8, (400,), generator=random)] @ torch.eye(8).repeat(1, 4)
    steps = torch.randint(30, (400, 1), generator=random) / 16
    for rows in (x, dice, one_hot, states, steps, x[:, :2].relu()):
        assert copied_rows([rows]) is None
    order = torch.randperm(800, generator=random) % 400
    for rows in (x, x[:, :1], x.relu(), x.bfloat16()):
        first = copied_rows([rows[order], dice[order]])
        assert first is not None
        assert bool((order[first] == order).all())
        assert len(first.unique()) == 400
        assert bool((first <= torch.arange(800)).all())
    is_off = torch.arange(400)[:, None] % 4 == 0  # a quarter of the rows say nothing
    assert copied_rows([torch.where(is_off, 0.0, x)]) is None
    assert copied_rows([torch.where(is_off, 3.5, x)]) is None
    often = torch.where(is_off, 3.5, x)[order]
    assert (
        len(present(copied_rows([often])).unique()) == 500
    )  # 300 rows, and 200 that are no copies


def test_streams_say_which_rows_have_the_content_or_id_of_another():
    x, _, _, order = unrelated(2)
    names = [f"row {i}" for i in order]
    for stream in (Stream.of(x[order]), Stream.of(x[order], ids=names)):
        found = sonde.fit(measure.StableRank(), stream, progress=False).result("stable_rank")
        assert "copies" in found.flags
        assert found.conventions["copies"].startswith("450 of 600 rows")
    for stream in (
        Stream.of(x),
        Stream.of(x[order], group=names),
        Stream.of(x[order], ids=range(600)),
    ):
        found = sonde.fit(measure.StableRank(), stream, progress=False).result("stable_rank")
        assert "copies" not in found.flags


def test_named_rows_and_groups_stay_as_they_are():
    x, _, _, order = unrelated(1)
    assert "copies" not in measure.stable_rank(x[order], group=np.arange(len(order))).flags
    free, own = (
        measure.stable_rank(x[order], group=np.arange(len(order))),
        measure.stable_rank(x[order]),
    )
    assert float(present(own.se)) / float(present(free.se)) == pytest.approx(
        math.sqrt(TIMES), rel=0.02
    )


@pytest.mark.truth("the error of the rows without their copies, times sqrt((n - 1) / n)")
def test_copies_of_logits_and_of_attentions_are_no_new_rows():
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(60, 7, 5, generator=draw)
    for z in (logits, logits[:, 0]):
        several = z.repeat(3, *[1] * (z.ndim - 1))
        once, copied = measure.token_entropy(z), measure.token_entropy(several)
        assert "copies" not in once.flags
        assert copied.conventions["copies"].startswith("120 of 180")
        assert float(present(copied.se)) == pytest.approx(float(present(once.se)), rel=1e-6)
        alone = measure.token_entropy(several, group=range(180))
        assert "copies" not in alone.flags
    probs = torch.randn(40, 2, 4, 6, generator=draw).softmax(-1)
    once, copied = (measure.attention_entropy(p) for p in (probs, probs.repeat(2, 1, 1, 1)))
    assert "copies" not in once.flags
    assert copied.conventions["copies"].startswith("40 of 80")
    assert float(present(copied.se)) == pytest.approx(float(present(once.se)), rel=1e-6)
