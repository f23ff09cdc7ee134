"""Agreement of gradients: printed cases, a loop over pairs, and halves of a group."""

import pytest
import torch

from sonde.core import InputError
from sonde.engine.running import Running
from sonde.measure import GradientConflict, gradient_conflict


def means(rows):
    """Return two rows for each group whose mean is the given one."""
    rows = torch.as_tensor(rows, dtype=torch.float64)
    return rows.repeat_interleave(2, 0), torch.arange(len(rows)).repeat_interleave(2)


@pytest.mark.truth("closed form: orthogonal, equal and opposite gradients")
@pytest.mark.parametrize(
    ("rows", "cosine", "congruity"),
    [
        (torch.eye(4), 0, 0.25),
        (torch.tensor([[3.0, 4.0]]).repeat(5, 1), 1, 1),
        ([[1.0, 2.0], [-1.0, -2.0]], -1, 0),
    ],
)
def test_printed_cases(rows, cosine, congruity):
    found = gradient_conflict(*means(rows))
    assert float(found) == pytest.approx(cosine)
    assert found.congruity == pytest.approx(congruity)


@pytest.mark.truth("signs counted by hand")
def test_agreement_is_the_share_of_the_commonest_sign():
    found = gradient_conflict(*means([[-1.0, 2.0, 0.0], [-0.3, -1.0, 0.0], [-2.0, 4.0, 1.0]]))
    assert found.agreement.tolist() == pytest.approx([1, 2 / 3, 2 / 3])


@pytest.mark.truth("a loop over pairs of groups")
def test_sums_give_what_pairs_give():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 5, generator=draw, dtype=torch.float64) + 0.3
    label = torch.randint(-1, 4, (40,), generator=draw)
    found = gradient_conflict(rows, label)
    mean = [rows[label == k].mean(0) for k in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    each = [float(torch.cosine_similarity(mean[a], mean[b], 0)) for a, b in pairs]
    assert float(found) == pytest.approx(sum(each) / 12, rel=1e-10)
    signs = [sum(float(m[2]) > 0 for m in mean)]
    assert float(found.agreement[2]) == max(signs[0], 4 - signs[0]) / 4
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert "unlabelled" in found.flags
    running = Running(GradientConflict())
    for part in (slice(0, 11), slice(11, 40)):
        running.update(rows[part], grad=rows[part], label=label[part])
    assert float(running.result()) == pytest.approx(float(found), rel=1e-12)


@pytest.mark.essential
@pytest.mark.truth("mean cosine of two halves over many draws")
def test_the_null_is_what_two_halves_of_a_group_give():
    draw, size = torch.Generator().manual_seed(1), 20
    true = torch.tensor([0.6, -0.4, 0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    cosines, nulls = [], []
    for _ in range(300):
        rows = true + 0.8 * torch.randn(2 * size, 6, generator=draw, dtype=torch.float64)
        halves = [part.mean(0) for part in rows.split(size)]
        cosines.append(float(torch.cosine_similarity(halves[0], halves[1], 0)))
        both = torch.cat((rows, rows))
        found = gradient_conflict(both, torch.arange(2).repeat_interleave(2 * size))
        nulls.append(float(found.itself[0]))
    assert sum(nulls) / 300 == pytest.approx(sum(cosines) / 300, abs=0.05)


@pytest.mark.truth("mean cosine of two groups of one mean gradient over many draws")
def test_attainable_is_the_cosine_of_groups_that_differ_by_noise_alone():
    draw, sizes = torch.Generator().manual_seed(2), (20, 45)
    true = torch.cat([torch.tensor([0.6, -0.4, 0.2]), torch.zeros(97)]).double()
    label = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    found = [
        gradient_conflict(true + 0.15 * torch.randn(65, 100, generator=draw).double(), label)
        for _ in range(60)
    ]
    own, told = (sum(v) / 60 for v in ([float(f) for f in found], [f.attainable for f in found]))
    assert 0.8 < own < 0.95
    assert told == pytest.approx(own, abs=0.005)


def test_one_group_is_refused_and_a_gradient_of_zero_is_dead():
    with pytest.raises(InputError, match="two groups or more, got 1"):
        gradient_conflict(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    assert "dead" in gradient_conflict(*means([[0.0, 0.0], [1.0, 0.0]])).flags
