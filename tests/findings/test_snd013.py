import pytest
import torch
from torch import nn

from findings._nets import assert_clear, assert_raised, checked, evidence_of, noise, tensors
from narrow import expect
from sonde.findings.codes.snd013 import SND013, slope


def net(gain: float, activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 40), activation, nn.Linear(40, 3)).eval()
    with torch.no_grad():
        expect(nn.Linear, module[0]).weight *= gain
    return module


@pytest.mark.truth("mean of the derivative of the activation by autograd")
@pytest.mark.parametrize(("activation", "steepest"), [(nn.Tanh(), 1.0), (nn.Sigmoid(), 0.25)])
def test_mean_slope_follows_from_two_moments(activation: nn.Module, steepest: float) -> None:
    module, x = net(3.0, activation), noise(200, 8)
    evidence = evidence_of(tensors(module, x))
    inside = module[0](x).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(activation(inside).sum(), inside)
    found = slope(evidence.sites[1], evidence)
    assert found is not None
    torch.testing.assert_close(found, gradient.double().mean(0) / steepest, atol=1e-5, rtol=1e-4)


def test_large_weights_saturate_a_tanh() -> None:
    finding = assert_raised(
        checked(SND013(), tensors(net(100.0, nn.Tanh()), noise(300, 8))), "warning"
    )
    assert finding.sites == ("1",)


@pytest.mark.slow
def test_clipped_activations_count_rows_at_their_ends() -> None:
    check = checked(SND013(), tensors(net(100.0, nn.Hardtanh(-0.5, 0.5)), noise(300, 8)))
    assert_raised(check, "warning")
    assert_clear(checked(SND013(), tensors(net(0.3, nn.Hardtanh(-0.5, 0.5)), noise(300, 8))))


@pytest.mark.slow
def test_ordinary_weights_are_clear_and_gates_a_note_at_most() -> None:
    assert_clear(checked(SND013(), tensors(net(1.0, nn.Tanh()), noise(300, 8))))

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(100.0, nn.Identity())[0]
            self.gate = nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gate(self.inner(x))

    assert_raised(checked(SND013(), tensors(Gated().eval(), noise(300, 8))), "note")


def test_only_where_the_site_is_such_an_activation() -> None:
    check = checked(SND013(), tensors(net(1.0, nn.ReLU()), noise(300, 8)))
    assert check.state == "not_applicable"
