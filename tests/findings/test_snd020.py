import pytest
import torch

from findings import _evidence as arrays
from findings._nets import Patches, assert_clear, assert_raised, evidence_of, tensors
from sonde.findings.fresh_weights import fresh_layers
from sonde.findings.rule import Check
from sonde.findings.snd020 import SND020


def ended(factor: float, depth: int = 6) -> Check:
    net = Patches(dim=24, depth=depth).eval().requires_grad_(False)
    net.get_submodule("blocks.2.up").get_parameter("weight").mul_(factor)
    stream = tensors(net, torch.randn(16, 5, 24, generator=torch.Generator().manual_seed(0)))
    return SND020().check(evidence_of(stream).having(fresh=fresh_layers(stream, 0)))


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_weight_of_another_size_is_named(factor: float) -> None:
    finding = assert_raised(ended(factor), "warning")
    assert finding.sites == ("blocks.2.up",)
    assert finding.figure.value == pytest.approx(factor, rel=0.1)


@pytest.mark.slow
def test_siblings_of_one_size_are_clear_and_few_are_not_judged() -> None:
    for factor in (1.0, 2.0):
        assert_clear(ended(factor))
    assert ended(10.0, depth=3).state == "not_applicable"
    assert SND020().check(arrays.evidence_of(torch.randn(40, 3))).state == "not_applicable"
