"""Weights of rows: exact counts, swapped nets, loops over rows."""

import pytest
import torch

from sonde.core import InputError
from sonde.train import Select


@pytest.mark.truth("closed form: the count of rows, and the sorted losses")
def test_small_losses_and_swapped_nets():
    a, b = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    rule = Select(remove=0.4, steps=10)
    for step, n in ((0, 100), (5, 80), (10, 60), (99, 60)):
        weight = rule(a, step=step)
        assert int(weight.sum()) == n
        assert float(a[weight == 1].max()) == float(a.sort().values[n - 1])
    co = Select("co_teaching", remove=0.4, steps=10)
    for_a, for_b = co(a, b, step=10)
    assert torch.equal(for_a, rule(b, step=10))
    assert torch.equal(for_b, rule(a, step=10))
    assert rule(torch.ones(5), step=10).tolist() == [1, 1, 1, 0, 0]
    assert not rule(a.clone().requires_grad_()).requires_grad


@pytest.mark.truth("a loop over rows and their nearest")
def test_agreement_of_neighbours():
    draw = torch.Generator().manual_seed(1)
    x, label = torch.randn(12, 2, generator=draw), torch.randint(3, (12,), generator=draw)
    found = Select("agreement", k=4)(x, label)
    for i in range(12):
        order = sorted((j for j in range(12) if j != i), key=lambda j: float((x[i] - x[j]).norm()))
        assert float(found[i]) == sum(int(label[j] == label[i]) for j in order[:4]) / 4


def test_partition_harm_and_the_least_row():
    first, second = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.5, 0.6, 0.5])
    assert Select("partition")(first, second).tolist() == [1, 0, 0]
    assert Select("drop_harmful")(first, second).tolist() == [0, 1, 1]
    assert Select("drop_harmful")(second + 1, second - torch.tensor([0.3, 0.1, 0.2])).tolist() == [
        *(0, 1, 0)
    ]
    with pytest.raises(
        InputError, match=r"a second value for each of .* rows with the rule 'partition'"
    ):
        Select("partition")(first)
