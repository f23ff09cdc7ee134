import pytest
import torch

from findings._nets import (
    Patches,
    assert_clear,
    assert_raised,
    checked,
    evidence_of,
    noise,
    tensors,
)
from sonde.findings.codes.snd024 import SND024, within_share


def inputs(inside: float = 1.0, n: int = 48) -> torch.Tensor:
    between = noise(n, 16)[:, None]
    return between + inside * noise(n * 8, 16, seed=1).reshape(n, 8, 16)


@pytest.mark.truth("1 - variance of example means / variance of rows, by numpy")
def test_share_of_variance_inside_examples() -> None:
    module, x = Patches(depth=2).eval(), inputs()
    evidence = evidence_of(tensors(module, x))
    with torch.no_grad():
        states = module.blocks[0](x).double().numpy()
    share = 1 - states.mean(1).var(0) / states.reshape(-1, 16).var(0)
    import numpy as np

    found = within_share(evidence.sites[0])
    assert found == pytest.approx(float(np.sort(share)[7]), rel=1e-4)


def test_attention_without_skips_makes_tokens_alike() -> None:
    check = checked(SND024(), tensors(Patches(depth=8, skip=False).eval(), inputs()))
    assert_raised(check, "warning")


def test_late_in_a_model_that_pools_it_is_a_note() -> None:
    class Late(Patches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i, block in enumerate(self.blocks):
                x = block(x)
                if i == 4:
                    x = x.mean(dim=1, keepdim=True) + 1e-4 * x
            return self.head(x.mean(dim=1))

    finding = assert_raised(checked(SND024(), tensors(Late(depth=6).eval(), inputs())), "note")
    assert finding.sites == ("blocks.5",)


def test_ordinary_blocks_are_clear() -> None:
    assert_clear(checked(SND024(), tensors(Patches(depth=4).eval(), inputs())))


def test_not_applicable_to_single_rows() -> None:
    from findings._nets import deep_relu

    check = checked(SND024(), tensors(deep_relu(2, 16, None), noise(64, 16)))
    assert check.state == "not_applicable"
