"""Layers fitted block after block: against fits by hand, how often blocks run, and the error."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from edit.fact_model import tiny
from models import Residual, ResidualBlock
from sonde import Model
from sonde.compress import GPTQ, LayerGrams, LowRankWeights, SparseGPT, layer_grams
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import with_tensors


class Plain(nn.Module):
    """A small net that adds nothing to its input: errors of earlier blocks reach later ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def drawn(seed: int, n: int = 150) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(seed)
    net = Residual(8, 3, width=10).double().eval()
    x = torch.randn(n, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    return net, x


@pytest.mark.truth("each block planned alone at the inputs of a model that was changed by hand")
def test_each_block_is_fitted_at_the_states_of_the_changed_blocks():
    net, x = drawn(0)
    plan = GPTQ(bits=2, group=4, sequential=True).plan(net, {"calibration": x})
    now, stages = net, [["first"], *([f"blocks.{i}.up", f"blocks.{i}.down"] for i in range(3))]
    for names in [*stages, ["last"]]:
        step = GPTQ(bits=2, group=4, layers=tuple(names)).plan(now, {"calibration": x})
        for name, change in step.changes.items():
            assert torch.equal(change.codes, plan.changes[name].codes), name
        old = dict(net.named_parameters())
        new = {name: change.of(old[name]) for name, change in step.changes.items()}
        now = with_tensors(now, {name: value.detach() for name, value in new.items()})
    assert plan.figures["sequential"] == 1.0
    once = GPTQ(bits=2, group=4).plan(net, {"calibration": x})
    differ = {name for name, change in once.changes.items()
              if not torch.equal(change.codes, plan.changes[name].codes)}  # fmt: skip
    assert differ
    assert "first.weight" not in differ
    assert "sequential" not in once.figures


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        GPTQ(bits=2, group=5),
        SparseGPT(remove=0.6, half=False),
        LowRankWeights(remove=0.5, half=False),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_the_error_is_no_larger_than_that_of_one_pass_in_the_mean(rule):
    errors = torch.zeros(2, 20, dtype=torch.float64)
    for seed in range(20):
        torch.manual_seed(seed)
        net = Residual(8, 3, width=10)
        net.blocks = nn.ModuleList([Plain(10) for _ in range(3)])
        for part in net.double().modules():
            if isinstance(part, nn.Linear):
                part.weight.data *= 2
        mix = torch.randn(8, 8, dtype=torch.float64)
        x, other = (torch.randn(n, 8, dtype=torch.float64) @ mix for n in (60, 400))
        with torch.no_grad():
            wanted = net(other)
            for i, sequential in enumerate((False, True)):
                given = replace(rule, sequential=sequential, layers=("blocks.*",))
                plan = given.plan(net, {"calibration": x})
                old = dict(net.named_parameters())
                new = with_tensors(net, {n: c.of(old[n]) for n, c in plan.changes.items()})
                errors[i, seed] = (new(other) - wanted).square().sum() / wanted.square().sum()
    assert errors[1].mean() < errors[0].mean()


def test_a_block_runs_three_times_on_each_batch_however_many_blocks_there_are(monkeypatch):
    counts: list[int] = []
    for n_blocks in (2, 5):
        torch.manual_seed(0)
        net, n_calls = Residual(8, n_blocks), 0

        def counted(block: Any, x: torch.Tensor) -> torch.Tensor:
            nonlocal n_calls
            n_calls += 1
            return x + block.down(torch.tanh(block.up(x)))

        monkeypatch.setattr(ResidualBlock, "forward", counted)
        calls = list[int]()
        for n_batches in (2, 4):
            n_calls = 0
            data = open_inputs(Model(net), torch.randn(8 * n_batches, 8), batch_size=8)
            GPTQ(bits=3, sequential=True, layers=("blocks.*",)).plan(net, {"calibration": data})
            calls.append(n_calls)
        counts.append((calls[1] - calls[0]) // (2 * n_blocks))
    assert counts == [3, 3]  # the model once, then each block twice


def test_texts_with_padding_give_what_each_alone_gives():
    model, texts = tiny(), ["tom likes tea", "ann", "joe sits in oslo"]
    rule = SparseGPT(remove=0.5, sequential=True, half=False, layers=("*.layers.*",))
    both = rule.plan(model, {"calibration": open_inputs(model, texts)})
    alone = rule.plan(model, {"calibration": open_inputs(model, texts, batch_size=1)})
    for name, change in both.changes.items():
        torch.testing.assert_close(change.values, alone.changes[name].values, atol=1e-4, rtol=1e-3)


def test_what_cannot_be_fitted_block_after_block_is_refused():
    net, x = drawn(0)
    grams: LayerGrams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    with pytest.raises(InputError, match="expected data as 'calibration', got LayerGrams"):
        GPTQ(sequential=True).plan(net, {"calibration": grams})
    plain = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(InputError, match="a model with a list of blocks, got Sequential"):
        GPTQ(sequential=True).plan(plain, {"calibration": x.float()})
    with pytest.raises(InputError, match="which reads no inputs"):
        LowRankWeights(whiten="none", sequential=True)
    shared = drawn(1)[0]
    shared.blocks[2].up.weight = shared.blocks[0].up.weight
    with pytest.raises(InputError, match="weights that belong to one block only"):
        GPTQ(sequential=True).plan(shared, {"calibration": x})

    class Scales(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = block(2 * x)
            return self.last(x)

    with pytest.raises(InputError, match=r"got other states in blocks\.1"):
        GPTQ(sequential=True).plan(Scales(8, 3), {"calibration": x.float()})
