"""AWQ: scales that change nothing, against plain rounding, shared heads, and what is refused."""

import pytest
import torch
from torch import nn

import sonde
from sonde import Model
from sonde.compress import AWQ, RTN, SmoothQuant, layer_grams
from sonde.core.errors import InputError
from sonde.data import open_inputs


class Block(nn.Module):
    """A norm that two layers read, a gate that no scale passes, and a product that one passes."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(10)
        self.up, self.gate = nn.Linear(10, 14, bias), nn.Linear(10, 14)
        self.down = nn.Linear(14, 6)
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x = self.down(self.up(x) * torch.sigmoid(self.gate(x)))
        return self.last(torch.relu(self.first(x)))


def drawn(bias: bool = True) -> tuple[Block, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    net = Block(bias).eval().requires_grad_(False)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=draw) * 0.5 + 0.1
    net.norm.weight.data *= torch.tensor([30.0, 1, 0.1, 1, 2, 1, 9, 1, 0.3, 1])
    return net, torch.randn(50, 10, generator=draw)


@pytest.mark.essential
@pytest.mark.truth("the answers of the unscaled model")
def test_scales_without_rounding_change_no_answer():
    for bias in (True, False):
        net, x = drawn(bias)
        plan = AWQ(bits=3, group=7, smooth_only=True).plan(net, {"calibration": x})
        new = plan.fold(net)
        torch.testing.assert_close(new(x), net(x), rtol=1e-4, atol=1e-4)
        # norm -> up and gate, up -> down, first -> last through relu; down -> first
        assert plan.figures == {"scaled": 5.0}
        moved = [n for n, p in net.named_parameters() if not torch.equal(p, new.get_parameter(n))]
        assert {"norm.weight", "norm.bias", "up.weight", "down.weight", "first.bias"} <= {*moved}
        ratio = new.gate.weight / net.gate.weight
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-4)
        assert float(ratio.max() / ratio.min()) > 3


@pytest.mark.essential
@pytest.mark.truth("the output error on the rows themselves; plain rounding bounds it")
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_the_error_is_never_above_that_of_plain_rounding(symmetry):
    gains = []
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 9)).eval().requires_grad_(False)
        net[0].weight.data = torch.randn(20, generator=draw) ** 3 * 4
        net[1].weight.data = torch.randn(9, 20, generator=draw)
        x = torch.randn(80, 20, generator=draw)
        plan = AWQ(bits=3, group=6, symmetry=symmetry).plan(net, {"calibration": x})
        new = plan.fold(net)
        told = plan.figures
        plain = nn.Sequential(new[0], new[1].dequantise()).requires_grad_(False)
        wanted = float((plain(x) - net(x)).square().sum() / 80)
        assert told["loss"] == pytest.approx(wanted, rel=1e-3)
        assert told["loss"] <= told["loss_rtn"] * (1 + 1e-9)
        gains.append(told["loss"] / told["loss_rtn"])
    assert min(gains) < 0.7
    assert AWQ(bits=None).plan(net, {"calibration": x}).fold(net) is net


def test_heads_that_share_values_share_their_scales():
    model = sonde.load("sonde:stdlib", device="cpu")
    texts = open_inputs(model, ["def f(x):\n    return x + 1\n", "import os\n\nfor x in y: pass"])
    plan = AWQ(smooth_only=True, steps=3, layers=("model.layers.1.*",)).plan(
        model, {"calibration": texts}
    )
    assert plan.figures["scaled"] == 7.0
    with torch.no_grad():
        tokens = torch.tensor([[100, 101, 102, 30, 50]])
        gap = plan.fold(model)(tokens).logits - model.module(tokens).logits
    assert float(gap.abs().max()) < 1e-3


def test_what_awq_cannot_do_is_refused():
    net, x = drawn()
    with pytest.raises(InputError, match="steps of at least 1, got 0"):
        AWQ(steps=0)
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    with pytest.raises(InputError, match="expected data as 'calibration', got LayerGrams"):
        AWQ().plan(net, {"calibration": grams})


def llama(n_blocks: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": n_blocks}
    return LlamaForCausalLM(LlamaConfig(**heads, **sizes)).eval()


def texts(n: int, seed: int) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 50, (12,), generator=draw).tolist()} for _ in range(n)]


@pytest.mark.slow
@pytest.mark.truth("the number of forward passes, counted by a hook")
@pytest.mark.parametrize("method", [AWQ(steps=3), SmoothQuant()])
def test_candidates_run_their_block_and_not_the_model(method):
    counts, scaled = [], []
    for n_blocks in (2, 6):
        model, runs = llama(n_blocks), []
        handle = model.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        plan = method.plan(model, {"calibration": texts(8, 0)})
        handle.remove()
        counts.append(len(runs))
        scaled.append(plan.figures["scaled"])
    assert scaled == [7 * 2 + 1, 7 * 6 + 1]  # the head too: its norm is outside of all blocks
    assert counts[0] == counts[1]


@pytest.mark.slow
@pytest.mark.truth("the logits of the whole model on texts that calibrated nothing")
def test_held_texts_are_answered_as_well_as_by_plain_rounding():
    model, held = llama(6), torch.tensor([text["input_ids"] for text in texts(32, 1)])
    with torch.no_grad():
        answers = model(input_ids=held).logits
        errors = {}
        for method in (RTN(bits=3), AWQ(bits=3)):
            new = method.plan(model, {"calibration": texts(32, 0)}).fold(model)
            errors[type(method)] = float((new(input_ids=held).logits - answers).square().mean())
    assert errors[AWQ] < errors[RTN]
