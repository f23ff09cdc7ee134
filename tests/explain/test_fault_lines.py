"""Fewest concepts on heads whose answer is a product, by brute force over subsets."""

from itertools import combinations

import pytest
import torch
from torch import nn

from models import cnn
from sonde.core import InputError, ShapeError
from sonde.explain import FaultLines

DRAW = torch.Generator().manual_seed(0)


def fewest(gap, slope, bound):
    """Return the size of the smallest set of concepts at their bounds that undoes a gap."""
    for size in range(1, len(slope) + 1):
        for subset in combinations(range(len(slope)), size):
            if sum(abs(float(slope[i])) * bound for i in subset) > gap:
                return size
    return float("inf")


@pytest.mark.essential
@pytest.mark.truth("brute force over all subsets of eight concepts of a linear head")
def test_the_number_of_concepts_is_the_smallest():
    head = nn.Linear(6, 2).double().requires_grad_(False)
    x = 2 * torch.randn(12, 6, generator=DRAW, dtype=torch.float64)
    concepts = torch.randn(8, 6, generator=DRAW, dtype=torch.float64)
    found = FaultLines(bound=0.4, margin=1e-3).explain(head, x, concepts=concepts)
    want, weight = [], head.weight.double()
    for out in head(x):
        first, second = out.topk(2).indices.tolist()
        slope = concepts @ (weight[first] - weight[second])
        want.append(fewest(float(out[first] - out[second]), slope, 0.4))
    assert torch.as_tensor(found.value).tolist() == want
    assert max(w for w in want if w < 9) > 1
    changed = head(x + found.change @ concepts)
    assert torch.equal(changed.argmax(1)[found.flips], found.other[found.flips])


@pytest.mark.essential
@pytest.mark.truth("linear head: under an l1 price the one best concept, as far as it must")
def test_one_concept_is_moved_as_far_as_it_must():
    head = nn.Linear(3, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, 0.3, -0.2], [0.0, 0.0, 0.0]])
    x = torch.tensor([[2.0, 0.0, 0.0]])
    found = FaultLines(steps=800, margin=0.01).explain(head, x, concepts=torch.eye(3), other=1)
    assert found.removed(0) == [0]
    assert found.added(0) == []
    assert float(found.change[0, 0]) == pytest.approx(-2.0, abs=0.1)


@pytest.mark.slow
def test_maps_move_at_every_place_and_the_edited_model_flips():
    net = cnn()
    x = torch.rand(5, 1, 28, 28, generator=DRAW)
    site, module = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    found = FaultLines(bound=50.0, steps=80).explain(
        net, x, concepts=torch.eye(module.out_channels), site=site
    )
    assert found.flips.all()
    step = found.change[:, :, None, None]

    def edited(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor):
        return output + step

    handle = module.register_forward_hook(edited)
    assert torch.equal(net.eval()(x).argmax(1), found.other)
    handle.remove()


def test_what_does_not_fit_is_refused():
    head = nn.Linear(3, 2)
    with pytest.raises(ShapeError, match="width 3"):
        FaultLines().explain(head, torch.ones(1, 3), concepts=torch.eye(4))
    own = int(head(torch.ones(1, 3)).argmax())
    with pytest.raises(InputError, match="a class other than the model's answer"):
        FaultLines().explain(head, torch.ones(1, 3), concepts=torch.eye(3), other=own)
    stuck = FaultLines(bound=1e-6).explain(head, torch.ones(1, 3), concepts=torch.eye(3))
    assert torch.as_tensor(stuck.value).tolist() == [float("inf")]
