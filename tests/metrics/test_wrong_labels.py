"""The number and the order of wrong labels, on data whose wrong labels are known."""

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.metrics import wrong_labels


def drawn(n: int, n_wrong: int, seed: int, classes: int = 5, sharp: float = 1.0):
    """Return probabilities, labels drawn from them to a power, and which labels are wrong."""
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.full(classes, 0.15), n)
    truth = np.array([draw.choice(classes, p=row) for row in p])
    given = p**sharp / (p**sharp).sum(1, keepdims=True)
    bad = np.zeros(n, bool)
    bad[draw.choice(n, n_wrong, replace=False)] = True
    return given, np.where(bad, (truth + draw.integers(1, classes, n)) % classes, truth), bad


@pytest.mark.parametrize("sharp", [0.5, 1.0, 2.5])
def test_the_interval_covers_the_number_also_if_the_model_is_overconfident(sharp):
    inside, gaps = 0, []
    for seed in range(12):
        n_wrong = 25 * (seed % 4)
        p, label, bad = drawn(900, n_wrong, seed, sharp=sharp)
        found = wrong_labels(p, label)
        inside += found.low <= n_wrong <= found.high
        if n_wrong:
            k = int(bad.sum())
            gaps.append(bad[found.order[:k]].mean() - found.expected(k) / k)
            assert found.sharpness == pytest.approx(1 / sharp, rel=0.35)
    assert inside >= 10
    assert -0.05 < np.mean(gaps) < 0.15  # averaged over what fits: cautious where all is known


def uneven(seed: int, rate: float, spread: float = 0.5):
    """Return probabilities that are too sure on some rows and too cautious on others."""
    draw = np.random.default_rng(seed)
    n, classes = 600, 4
    z = 4 * draw.normal(size=(n, classes))
    power = np.exp(spread * draw.normal(size=(n, 1)) - 0.3)
    p, true = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (z, power * z))
    label = np.array([draw.choice(classes, p=row) for row in true])
    bad = draw.random(n) < rate
    return p, np.where(bad, (label + draw.integers(1, classes, n)) % classes, label), bad


@pytest.mark.slow
@pytest.mark.truth("labels drawn from the probabilities to a power of each row's own")
def test_a_model_that_is_too_sure_on_some_rows_does_not_make_their_labels_wrong():
    uneven_rows = [uneven(seed, 0.03 * (seed % 2)) for seed in range(24)]
    each = [(wrong_labels(p, label), bad) for p, label, bad in uneven_rows]
    assert sum(w.low - 0.5 <= bad.sum() <= w.high + 0.5 for w, bad in each) >= 22
    assert sum(w.number > 0 for w, _ in each[::2]) <= 2


@pytest.mark.slow
@pytest.mark.truth("the exchanged labels of 24 draws")
def test_the_probability_of_a_label_is_how_often_such_labels_are_wrong():
    wrong, stated = [], []
    for seed in range(24):
        p, label, bad = uneven(seed, 0.03 * (seed % 2), spread=0.3)
        chance = wrong_labels(p, label).probability.numpy()
        wrong += bad[chance > 0.5].tolist()
        stated += chance[chance > 0.5].tolist()
    assert len(wrong) > 40
    assert np.mean(wrong) == pytest.approx(np.mean(stated), abs=0.1)


def test_errors_that_crowd_in_neighbouring_rows_widen_the_interval():
    p, label, _ = uneven(1, 0.05)
    right = p.argmax(1) == label
    order = np.argsort(right, kind="stable")  # all errors first
    mixed, crowded = wrong_labels(p, label), wrong_labels(p[order], label[order])
    assert mixed.dispersion < 2 < 8 < crowded.dispersion
    assert crowded.number == mixed.number  # a batch of wrong labels is seen
    assert crowded.low < mixed.low < mixed.high < crowded.high
    torch.testing.assert_close(crowded.support, mixed.support[order])


def test_copies_and_groups_of_rows_are_not_taken_for_crowded_errors():
    p, label, _ = uneven(0, 0.05)
    group, draw = np.arange(600).repeat(3), np.random.default_rng(0).permutation(1800)
    p, label = p.repeat(3, 0), label.repeat(3)
    assert wrong_labels(p, label, group).dispersion < 2
    assert wrong_labels(p[draw], label[draw], group[draw]).dispersion < 2


@pytest.mark.slow
def test_labels_of_which_none_is_wrong_are_rarely_called_wrong():
    number = [wrong_labels(*drawn(400, 0, seed)[:2]).number for seed in range(40)]
    assert sum(n > 0 for n in number) <= 5
    assert max(number) < 0.03 * 400


def test_copies_of_a_row_widen_the_interval():
    p, label, _ = drawn(150, 12, 3)
    one = wrong_labels(p, label)
    many = wrong_labels(np.repeat(p, 4, 0), np.repeat(label, 4), np.repeat(np.arange(150), 4))
    assert many.number == pytest.approx(4 * one.number, rel=0.02)
    assert (many.low, many.high) == pytest.approx((4 * one.low, 4 * one.high), rel=0.1)


@pytest.mark.parametrize("form", [torch.as_tensor, np.asarray, list, lambda g: list(map(str, g))])
def test_groups_count_alike_in_every_form(form):
    p, label, _ = drawn(150, 12, 3)
    group = (np.arange(150) // 5).tolist()
    expected = wrong_labels(p, label, group)
    seen = wrong_labels(torch.as_tensor(p).requires_grad_(), label, form(group))
    assert (seen.low, seen.high) == (expected.low, expected.high)
    assert seen.high - seen.low > wrong_labels(p, label).high - wrong_labels(p, label).low


def test_the_order_does_not_depend_on_whether_labels_are_called_wrong():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    found = wrong_labels(p, [0, 0, 0])
    assert found.number == 0
    assert found.order.tolist() == [2, 1, 0]
    assert found.named.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("p", "label", "words"),
    [
        ([[2.0, -1.0]], [0], "Apply softmax"),
        ([[0.5, 0.5]], [2], "integer labels from 0 to 1"),
        ([[1.0]], [0], "at least two classes"),
        (torch.ones(0, 2), torch.ones(0, dtype=torch.int64), "a label for each row"),
        ([[0.5, 0.5]], [0, 1], "a label for each row"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "a label for each row"),
        ([["a", "b"]], [0], "expected"),
    ],
)
def test_what_is_no_probability_or_label_is_refused(p, label, words):
    with pytest.raises(InputError, match=words):
        wrong_labels(p, label)
