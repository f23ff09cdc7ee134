import numpy as np
import pytest
import torch
from torch import nn

from findings._evidence import digits, shuffled, states, versus_of
from findings._nets import assert_raised, framed, grey
from narrow import expect
from sonde.findings.codes.snd053 import SND053


def split() -> tuple[torch.Tensor, torch.Tensor]:
    x, order = digits()[0], shuffled(1797, 5)
    return x[order[:1200]], x[order[1200:]].clone()


def test_a_leak_is_a_warning_and_a_clean_split_is_clear() -> None:
    train, test = split()
    assert SND053().check(versus_of(train, test)).state == "clear"
    test[:6] = train[:6]
    ids = [f"test {i}" for i in range(597)]
    facts = {"keys": [row.numpy().tobytes() for row in test]}
    mine = {"keys": [row.numpy().tobytes() for row in train]}
    finding = assert_raised(
        SND053().check(versus_of(train, test, facts=mine, other={"ids": ids, "facts": facts})),
        "warning",
    )
    assert finding.sentence.startswith(
        "6 of 597 inputs of OTHER (1 %) also occur in DATA, byte for byte."
    )
    assert set(finding.examples) == set(range(6))


def test_one_equal_input_of_many_is_a_note_and_short_ones_are_apart() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(300, 4)), rng.normal(size=(1500, 4))
    test[0] = train[0]
    assert_raised(SND053().check(versus_of(train, test)), "note")
    short = {"size": torch.full((1500,), 8)}
    check = SND053().check(versus_of(train, test, other={"facts": short}))
    assert check.finding is not None
    assert "1 shared input below 16 bytes" in check.finding.sentence


def test_noisy_copies_in_other_are_a_warning() -> None:
    train, test = split()
    generator = torch.Generator().manual_seed(0)
    test[:8] = train[:8] + 0.002 * torch.randn(8, 64, generator=generator)
    finding = assert_raised(SND053().check(versus_of(states(train)[0], states(test)[0])), "warning")
    assert "more rows of OTHER are near-copies of" in finding.sentence


@pytest.mark.slow
def test_images_of_equal_brightness_are_no_look_alikes() -> None:
    x, order = framed(digits()[0]), shuffled(1797, 5)
    train, test = x[order[:1200]], x[order[1200:]].clone()
    assert SND053().check(versus_of(ends(train), ends(test))).state == "clear"
    test[:8] = train[:8] + 0.002 * torch.randn(test[:8].shape, generator=torch.manual_seed(0))
    assert_raised(SND053().check(versus_of(ends(train), ends(test))), "warning")


@torch.no_grad()
def ends(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the pooled states at the first and the last site of a net over grey images."""
    module = expect(nn.Sequential, grey(x).model.module)
    return {"first": module[0](x).mean((2, 3)), "last": module(x)}
