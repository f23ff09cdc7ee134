"""Two nets that choose rows for each other, and nets whose units nested dropout orders."""

import pytest
import torch

from sonde_studies._co_taught import NestedNet, taught
from sonde_studies.worlds.learning import drawn


def _rows(n, seed):
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(10, (n,), generator=draw)
    means = torch.randn(10, 64, generator=torch.Generator().manual_seed(9))
    return means[label] + 0.8 * torch.randn(n, 64, generator=draw), label


@pytest.mark.truth("a net whose later units have no weight in the head")
def test_accuracy_with_the_first_units_is_that_without_the_others():
    x, label = _rows(200, 1)
    net = drawn(lambda: NestedNet(24), 2)
    with torch.no_grad():
        net.head.weight.copy_(torch.randn(10, 24, generator=torch.Generator().manual_seed(3)))
    cut = net.accuracy(x, label, 7)
    with torch.no_grad():
        net.head.weight[:, 7:] = 0.0
        alone = float((net(x).argmax(1) == label).double().mean())
    assert cut == alone
    assert net.accuracy(x, label, 24) == alone


@pytest.mark.truth("labels that were planted wrong, and a net that sees all rows")
def test_rows_with_wrong_labels_harm_two_nets_less_if_they_leave_such_rows_out():
    x, label = _rows(300, 4)
    fresh, truth = _rows(400, 5)
    draw = torch.Generator().manual_seed(6)
    wrong = torch.rand(len(x), generator=draw) < 0.5
    given = torch.where(wrong, torch.randint(10, (len(x),), generator=draw), label)
    right = {
        left_out: taught(x, given, 3, 80, left_out, 0.0).accuracy(fresh, truth, 128)
        for left_out in (0.0, 0.5)
    }
    assert right[0.5] > right[0.0] + 0.05


def test_nested_dropout_leaves_most_of_the_accuracy_to_the_first_units():
    x, label = _rows(300, 7)
    fresh, truth = _rows(300, 8)
    plain, nested = (
        taught(x, label, 3, 60, 0.0, std).accuracy(fresh, truth, 4) for std in (0.0, 4.0)
    )
    assert nested > plain
