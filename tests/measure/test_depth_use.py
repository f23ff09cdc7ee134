import pytest
import torch
from torch import nn

import models
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.measure import depth_use


class Block(nn.Module):
    """What it is given, and a linear map of it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x + x @ self.weight.T


def stack(weights):
    return nn.Sequential(*(Block(w) for w in weights)).eval()


def used(model, rows, **options):
    inputs = open_inputs(Model(model), list(rows))
    return depth_use(model, inputs.batches(0, len(rows)), **options)


@pytest.mark.truth("closed form of a linear stream")
def test_blocks_that_add_half_of_their_input():
    found = used(stack([0.5 * torch.eye(4)] * 6), torch.randn(8, 4))
    assert found.contribution.tolist() == pytest.approx([0.5] * 6)
    assert found.cosine.tolist() == pytest.approx([1.0] * 6)
    later = torch.ones(6, 6).triu(1).bool()
    assert torch.allclose(found.skip_effect[later], torch.tensor(1 / 3).double(), atol=1e-6)
    assert not found.skip_effect[~later].any()
    assert float(found) == pytest.approx(0.5) == found.null
    assert found.depth == pytest.approx(3.0)


@pytest.mark.truth("a rotation and a map of zeros")
def test_what_is_orthogonal_and_what_does_nothing():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    found = used(stack([turn, torch.zeros(2, 2), -0.5 * torch.eye(2)]), torch.randn(5, 2))
    assert found.contribution.tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert float(found.cosine[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(found.cosine[2]) == pytest.approx(-1.0)
    assert float(found.skip_effect[1, 2]) == 0.0
    assert float(found.answer_change[1]) == 0.0


@pytest.fixture(scope="module")
def llama():
    return models.llama()


@pytest.mark.truth("hidden states of transformers, and its layers called one by one")
def test_a_language_model(llama):
    draw = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(3, models.VOCABULARY, (n,), generator=draw)} for n in (9, 6)
    ]
    inputs = open_inputs(Model(llama, task="causal"), rows, batch_size=2)
    found = depth_use(llama, inputs.batches(0, 2), leave_out=1)
    ratios = []
    for row in rows:
        with torch.no_grad():
            out = llama(input_ids=row["input_ids"][None], output_hidden_states=True)
        # the last of the hidden states is after the final norm: blocks but the last
        h = torch.stack(out.hidden_states)[:-1, 0, 1:].double()
        ratios.append(h.diff(dim=0).norm(dim=-1) / h[:-1].norm(dim=-1))
    want = torch.cat(ratios, 1).mean(1)
    assert found.contribution[: len(want)].tolist() == pytest.approx(want.tolist(), rel=1e-4)
    assert found.n == 2
    assert float(found.answer_change.min()) > 0
    assert bool((found.largest_skip_effect >= found.skip_effect).all())


def test_a_block_that_changes_the_width_is_named():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    with pytest.raises(InputError, match="depth_use: expected blocks that keep the shape"):
        used(net, torch.randn(3, 4))
