"""Low rank: the smallest error of outputs, what is saved and opened, and what is refused."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde import Model
from sonde.compress import LowRankWeights, ThinLinear, layer_grams
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.data.shipped import model_directory


def drawn() -> tuple[Any, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 24)).double().eval().requires_grad_(False)
    net[0].weight.data = torch.randn(24, 32, generator=draw, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(32, 32, generator=draw, dtype=torch.float64))[0]
    spread = torch.logspace(0, -3, 32, dtype=torch.float64)
    return net, torch.randn(200, 32, generator=draw, dtype=torch.float64) @ (spread[:, None] * mix)


@pytest.mark.truth("singular values of the outputs, Eckart and Young")
def test_two_ways_have_the_smallest_output_error_of_their_rank():
    net, x = drawn()
    grams = layer_grams(net, open_inputs(Model(net), x), exact=True, progress=False)
    w, errors = net[0].weight.detach(), {}
    least = float(torch.linalg.svdvals(x @ w.T)[8:].square().sum())
    for whiten in ("output", "gram", "scale", "none"):
        rule = LowRankWeights(rank=8, whiten=whiten, damp=1e-12, half=False)
        plan = rule.plan(net, {"calibration": grams})
        new = plan.fold(net)[0]
        assert isinstance(new, ThinLinear)
        assert torch.linalg.matrix_rank(new.left @ new.right) == 8
        errors[whiten] = float((net(x) - new(x)).square().sum())
        assert plan.figures["loss"] * 200 == pytest.approx(errors[whiten], rel=1e-6)
    assert errors["output"] == pytest.approx(least, rel=1e-6)
    assert errors["gram"] == pytest.approx(least, rel=1e-6)
    assert min(errors["scale"], errors["none"]) > 1.5 * least
    plain = LowRankWeights(rank=8, whiten="none", half=False).plan(net).fold(net)[0]
    gap = float((plain.left @ plain.right - w).square().sum())
    assert gap == pytest.approx(float(torch.linalg.svdvals(w)[8:].square().sum()))


def test_a_share_bounds_the_numbers_and_the_folder_opens(tmp_path):
    from transformers import AutoModelForCausalLM

    model = sonde.load("sonde:stdlib", device="cpu")
    plan = LowRankWeights(remove=0.4, whiten="none", layers=("*.up_proj",)).plan(model)
    new = plan.fold(model)
    name, old = "model.layers.1.mlp.up_proj.weight", model.module.state_dict()
    layer: Any = new.get_submodule("model.layers.1.mlp.up_proj")
    assert layer.left.numel() + layer.right.numel() <= 0.6 * old[name].numel()
    plan.save("sonde:stdlib", tmp_path / "small")
    sizes = [(at / "model.safetensors").stat().st_size
             for at in (Path(model_directory("sonde:stdlib")), tmp_path / "small")]  # fmt: skip
    assert sizes[1] < sizes[0]  # both of 16 bits
    ids = torch.tensor([[100, 101, 102, 90]])
    opened = (AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32),
              sonde.load(str(tmp_path / "small"), device="cpu").module)  # fmt: skip
    with torch.no_grad():
        wanted = new(ids).logits
        for again in opened:
            assert isinstance(again.get_submodule("model.layers.1.mlp.up_proj"), ThinLinear)
            torch.testing.assert_close(again(ids).logits, wanted)  # alignment turns last bits
    assert (
        LowRankWeights(remove=0.0).plan(model, {"calibration": ["a"]}).fold(model) is model.module
    )
    with pytest.raises(InputError, match="got a packed model"):
        LowRankWeights(whiten="none").plan(new)


@pytest.mark.truth("every combination of ranks, with errors of the layers' own outputs")
@pytest.mark.parametrize("whiten", ["output", "none"])
def test_a_shared_budget_gives_the_ranks_of_least_summed_error(whiten):
    draw = torch.Generator().manual_seed(3)
    net: Any = nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 7), nn.Linear(7, 10))
    net = net.double().eval().requires_grad_(False)
    for layer in (net[0], net[2], net[3]):
        layer.bias.data.zero_()
    for layer, decay in zip((net[0], net[2], net[3]), (-2.5, -0.5, 0.0), strict=True):
        noise = torch.randn(layer.weight.shape, generator=draw, dtype=torch.float64)
        left, spread, right = torch.linalg.svd(noise, full_matrices=False)
        spread = spread * torch.logspace(0, decay, len(spread), dtype=torch.float64)
        layer.weight.data = left * spread @ right
    x = torch.randn(300, 9, generator=draw, dtype=torch.float64) + 0.5
    inputs = {0: x, 2: net[:2](x), 3: net[:3](x)}
    tables, remove = {}, 0.4
    for i, rows in inputs.items():
        w, n = net[i].weight.data, net[i].weight.numel()
        values = torch.linalg.svdvals(rows @ w.T if whiten == "output" else w).square()
        most = (n - 1) // sum(w.shape)
        lost = [float(values[r:].sum()) for r in range(1, most + 1)]
        tables[i] = [*((r, lost[r - 1], r * sum(w.shape)) for r in range(1, most + 1)), (0, 0, n)]
    budget = int((1 - remove) * sum(net[i].weight.numel() for i in inputs))
    fitting = [c for c in product(*tables.values()) if sum(size for *_, size in c) <= budget]
    best = min(fitting, key=lambda c: sum(lost for _, lost, _ in c))
    rule = LowRankWeights(remove=remove, whiten=whiten, shared_budget=True, half=False)
    given = {"calibration": open_inputs(Model(net), x)}
    new: Any = rule.plan(net, given).fold(net)
    ranks = [len(new[i].right) if isinstance(new[i], ThinLinear) else 0 for i in inputs]
    assert ranks == [rank for rank, *_ in best]
    assert len({*ranks}) > 1
    each: Any = LowRankWeights(remove=remove, whiten=whiten, half=False).plan(net, given).fold(net)
    outputs = {i: (rows, net[i](rows)) for i, rows in inputs.items()}
    lost = [sum(float((one[i](rows) - y).square().sum())
                for i, (rows, y) in outputs.items()) for one in (new, each)]  # fmt: skip
    assert lost[0] < lost[1] or whiten == "none"


def test_a_shared_budget_takes_no_rank_and_leaves_each_layer_one():
    with pytest.raises(InputError, match=r"expected remove for shared_budget=True, got rank=2"):
        LowRankWeights(rank=2, shared_budget=True)
    rule = LowRankWeights(remove=0.9, whiten="none", shared_budget=True)
    with pytest.raises(
        InputError, match=r"remove at most 0\.667 of the weights.* got 0\.9\. Lower"
    ):
        rule.plan(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))


def test_what_cannot_be_thinned_is_refused():
    net, _ = drawn()
    with pytest.raises(InputError, match=r"rank of at most 13 for 0\.weight of 24 x 32, got 14"):
        LowRankWeights(rank=14, whiten="none").plan(net)
    two = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.raises(InputError, match="expected a rank of at most 2, got 9"):
        LowRankWeights(rank=9, whiten="none").plan(two)
    for n_in, n_out in ((6, 3), (3, 2)):  # as many numbers as before save nothing; the most is 1
        with pytest.raises(InputError, match=f"most 1 for 0.weight of {n_out} x {n_in}, got 2"):
            LowRankWeights(rank=2, whiten="none").plan(nn.Sequential(nn.Linear(n_in, n_out)))
    with pytest.raises(InputError, match="rank of at least 1, got 0"):
        LowRankWeights(rank=0)
    with pytest.raises(InputError, match="got a convolution, 0"):
        LowRankWeights(whiten="none", layers=("*",)).plan(nn.Sequential(nn.Conv1d(3, 4, 2)))
