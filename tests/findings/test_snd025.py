import numpy as np
import pytest
import torch
from torch import Tensor, nn

from findings._nets import (
    Block,
    Patches,
    assert_clear,
    assert_raised,
    checked,
    evidence_of,
    noise,
    tensors,
    tokens,
)
from narrow import expect
from sonde.findings.codes.snd025 import SND025
from sonde.findings.profile import site_profile


def net(scale: float | None, block: int = 3, depth: int = 6) -> Patches:
    module = Patches(depth=depth).eval()
    if scale is not None:
        with torch.no_grad():
            changed = expect(Block, module.blocks[block])
            for part in (changed.value, changed.down):
                part.weight.mul_(scale)
                part.bias.mul_(scale)
    return module


X = noise(40 * 5, 16).reshape(40, 5, 16)


@pytest.mark.truth("median over units of rms(out - in) / std(in), by numpy from a plain forward")
@pytest.mark.parametrize("block", [0, 3])
def test_change_over_spread(block: int) -> None:
    module = net(0.02, block)
    finding = assert_raised(SND025().check(evidence_of(tensors(module, X))), "note")
    with torch.no_grad():
        before = X
        for part in module.blocks[:block]:
            before = part(before)
        after = module.blocks[block](before)
    change = (after - before).double().reshape(-1, 16).square().mean(0).sqrt()
    spread = before.double().reshape(-1, 16).std(0, correction=0)
    truth = np.sort((change / spread).numpy())[7]
    assert finding.figure.value == pytest.approx(float(truth), rel=1e-4)
    assert finding.sites == (f"blocks.{block}",)
    assert "5 other blocks" in finding.sentence


@pytest.mark.slow
def test_an_idle_block_and_many_weak_ones_are_warnings() -> None:
    assert_raised(checked(SND025(), tensors(net(0.0), X)), "warning")
    weak = net(0.02, block=1)
    with torch.no_grad():
        for block in (expect(Block, weak.blocks[i]) for i in (4, 5)):
            for part in (block.value, block.down):
                part.weight.mul_(0.02)
                part.bias.mul_(0.02)
    assert_raised(checked(SND025(), tensors(weak, X)), "warning")


def test_one_weak_block_of_few_is_a_note() -> None:
    assert_raised(checked(SND025(), tensors(net(0.02, block=0, depth=2), X)), "note")
    assert_raised(checked(SND025(several=1), tensors(net(0.02, block=0, depth=2), X)), "warning")


@pytest.mark.slow
def test_random_blocks_are_clear_and_one_huge_unit_changes_nothing() -> None:
    assert_clear(checked(SND025(), tensors(net(None), X)))

    class Spiked(Patches):
        def forward(self, x: Tensor) -> Tensor:
            for i, block in enumerate(self.blocks):
                x = block(x)
                if i == 0:
                    x = x + 3000 * nn.functional.one_hot(torch.tensor(2), 16)
            return self.head(x.mean(dim=1))

    assert_clear(checked(SND025(), tensors(Spiked(depth=4).eval(), X)))


@pytest.mark.slow
def test_the_first_block_is_judged_by_what_it_receives() -> None:
    evidence = evidence_of(tensors(net(0.0, block=0), X))
    check = SND025().check(evidence)
    finding = assert_raised(check, "warning")
    assert finding.sites == ("blocks.0",)
    assert finding.figure.value == 0.0
    profile = [site_profile(s, evidence) for s in evidence.sites]
    assert [p["site"] for p in profile] == [f"blocks.{i}:out" for i in range(6)]
    assert profile[0]["values"]["update_per_spread"]["value"] == 0.0
    healthy = evidence_of(tensors(net(None), X))
    assert_clear(SND025().check(healthy))
    assert set(SND025().check(healthy).tables["values"]) == {f"blocks.{i}" for i in range(6)}


def test_an_embedding_receives_nothing_that_it_could_keep() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(61, 16), nn.Linear(16, 16), nn.Linear(16, 16)).eval()

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.parts(input_ids)

    evidence = evidence_of(tokens(Embedded().eval(), [8] * 40))
    assert set(SND025().check(evidence).tables["values"]) == {"parts.1", "parts.2"}


def test_layers_without_parameters_and_unconnected_sites_are_not_judged() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 12), nn.Identity(), nn.Dropout(0.1), nn.ReLU()).eval()
    check = checked(SND025(), tensors(plain, noise(64, 16), sites=["0", "1", "2"]))
    assert check.state == "not_applicable"


def test_an_interval_where_rows_are_the_sampled_ones() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.08 * self.inner(x)

    torch.manual_seed(0)
    module = nn.Sequential(*[Residual() for _ in range(3)]).eval()
    check = checked(SND025(), tensors(module, noise(100, 16)))
    assert check.figure is not None
    assert check.figure.low is not None
    assert check.figure.low < check.figure.value < check.figure.high  # type: ignore[operator]


def test_a_block_that_writes_into_its_input_is_not_idle() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x.add_(self.inner(x))

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([InPlace() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            for block in self.blocks:
                x = block(x)
            return x

    check = checked(SND025(), tensors(Stack().eval(), noise(100, 16)))
    assert_clear(check)
    assert min(check.tables["values"].values()) > 0.3
    assert "blocks.0" in check.tables["values"]
