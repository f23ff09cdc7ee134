"""GPT-2's layers hold the transposed weight: every method packs them as it packs linear ones."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import sonde
from sonde.compress import (
    AWQ,
    GPTQ,
    RTN,
    BitAllocation,
    CoordinateRounding,
    DecoupleQ,
    LowRankWeights,
    PruneWeights,
    SignQuant,
    SmoothQuant,
    SparseGPT,
)
from sonde.weights import Rewrite, undo
from sonde.weights._weight_file import file_hash

RULES = [
    RTN(bits=3, group=5),
    SignQuant(),
    GPTQ(bits=3, group=5),
    GPTQ(bits=3, group=5, sequential=True),
    CoordinateRounding(bits=3, group=5),
    DecoupleQ(bits=2, group=8),
    BitAllocation(bits=3.0, group=8, by="error", widths=(2, 4)),
    AWQ(bits=3, group=5),
    SmoothQuant(bits=4, group=8),
    PruneWeights(remove=0.4),
    PruneWeights(remove=0.4, score="wanda"),
    SparseGPT(remove=0.4),
    LowRankWeights(remove=0.3),
]


class Turned(nn.Module):
    """Two layers of GPT-2's kind in two blocks of a stream, or linear ones with the same matrix."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        made = [[(6, 9), (9, 6)], [(6, 9), (9, 6)]]
        self.blocks = nn.ModuleList([_Block(sizes, turned) for sizes in made])
        self.square = Conv1D(6, 6) if turned else nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.square(x)


class _Block(nn.Module):
    def __init__(self, sizes: Any, turned: bool) -> None:
        super().__init__()
        self.one, self.two = (Conv1D(b, a) if turned else nn.Linear(a, b) for a, b in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.one(x)))


@pytest.mark.truth("the same matrices in linear layers")
@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{type(r).__name__}-{len(repr(r))}")
def test_a_turned_weight_is_compressed_as_the_matrix_that_it_holds(rule: Rewrite):
    torch.manual_seed(0)
    turned, plain = Turned(True).eval(), Turned(False).eval()
    for (name, x), (_, y) in zip(turned.named_parameters(), plain.named_parameters(), strict=True):
        x.data = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(name)))
        y.data = x.data.T.contiguous() if x.ndim == 2 else x.data.clone()
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(3)) * torch.arange(1.0, 7.0)
    given = {"calibration": x} if rule.reads() else None
    one, two = rule.plan(turned, given), rule.plan(plain, given)
    assert one.packed == two.packed
    assert len(one.packed) == 5
    torch.testing.assert_close(one.fold(turned)(x), two.fold(plain)(x), rtol=1e-4, atol=1e-4)
    assert (one.fold(turned)(x) - turned(x)).abs().max() > 1e-2
    for name in one.packed:
        old = dict(turned.named_parameters())[name], dict(plain.named_parameters())[name]
        torch.testing.assert_close(one.changes[name].of(old[0]).T, two.changes[name].of(old[1]))


@pytest.mark.parametrize("rule", [RTN(), PruneWeights(), LowRankWeights(whiten="none")])
def test_the_folder_of_a_packed_gpt2_opens_and_comes_back(tmp_path, rule):
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61}
    GPT2LMHeadModel(GPT2Config(**sizes)).eval().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = rule.plan(model)
    assert len(plan.packed) == 8
    plan.save(model, tmp_path / "new")
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    wanted = plan.fold(model)(ids).logits
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32)
    for other in (opened, sonde.load(str(tmp_path / "new"), device="cpu").module):
        torch.testing.assert_close(other(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    sizes = [(tmp_path / one / "model.safetensors").stat().st_size for one in ("old", "new")]
    assert sizes[1] < 0.8 * sizes[0]
    undo(tmp_path / "new", tmp_path / "again")
    for file in (tmp_path / "old").iterdir():
        assert file_hash(file) == file_hash(tmp_path / "again" / file.name)
