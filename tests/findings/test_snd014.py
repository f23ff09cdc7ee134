import pytest
import torch
from torch import nn

from findings._evidence import digits
from findings._nets import (
    assert_clear,
    assert_raised,
    checked,
    evidence_of,
    framed,
    grey,
    noise,
    tensors,
)
from narrow import expect
from sonde.core.stream import Stream
from sonde.findings.codes.snd014 import SND014
from sonde.findings.codes.snd022 import SND022


def test_copied_rows_of_a_weight() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 32), nn.ReLU()).eval()
    with torch.no_grad():
        layer = expect(nn.Linear, module[0])
        layer.weight[16:] = layer.weight[:16]
        layer.bias[16:] = layer.bias[:16]
    finding = assert_raised(checked(SND014(), tensors(module, noise(400, 8))), "warning")
    assert finding.figure.value == 0.5
    assert set(finding.sites) == {"0", "1"}
    assert [int(u) for u in finding.units] == list(range(16, 32))


def test_negated_and_scaled_copies_count_and_near_copies_do_not() -> None:
    x = noise(500, 20).double()
    x[:, 1] = -3 * x[:, 0] + 7
    assert_raised(checked(SND014(), Stream.of(x)), "note")
    y = noise(500, 20).double()
    y[:, 1] = 0.995 * y[:, 0] + (1 - 0.995**2) ** 0.5 * y[:, 1]
    assert_clear(checked(SND014(), Stream.of(y)))


def test_one_huge_row_does_not_make_copies() -> None:
    x = noise(500, 20)
    x[7] = 1e6
    assert_clear(checked(SND014(), Stream.of(x)))


def test_constant_and_rarely_active_units_are_left_out() -> None:
    x = noise(500, 20)
    x[:, :3] = 2.0
    x[:, 5:8] = 0.0
    x[:30, 5:8] = torch.rand(30, 1)
    assert_clear(checked(SND014(), Stream.of(x)))


def test_withheld_below_256_rows() -> None:
    check = checked(SND014(), Stream.of(noise(100, 8)))
    assert check.state == "withheld"
    assert (check.tables["present"], check.tables["needed"]) == (100, 256)


@pytest.mark.truth("the same rows without labels")
def test_labels_do_not_bring_constant_units_to_life() -> None:
    x = noise(1500, 40).double()
    x[:, :32] = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3
    label = torch.randint(0, 100, (1500,), generator=torch.Generator().manual_seed(3))
    for rows in (x, x.float()):
        for stream in (Stream.of(rows), Stream.of(rows, label=label)):
            evidence = evidence_of(stream)
            assert int(evidence.sites[0].alive.sum()) == 8
            assert_clear(checked(SND014(), evidence))
            assert_clear(checked(SND022(), evidence))


@pytest.mark.truth("units that are constant but in one row, which the second look leaves out")
def test_units_that_are_constant_without_the_largest_rows_are_no_copies() -> None:
    x = noise(500, 40).double()
    x[:, :20] = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3
    x[7, :20] += 1e3
    assert_clear(checked(SND014(), Stream.of(x)))


@pytest.mark.slow
def test_filters_agree_on_brightness_and_copies_on_every_position() -> None:
    x = framed(digits()[0][:1000])
    evidence = evidence_of(grey(x))
    pooled = evidence.sites[0].sample.rows.double()
    assert float(torch.corrcoef(pooled.T).abs().min()) > 0.9999
    assert_clear(checked(SND014(), evidence))
    finding = assert_raised(checked(SND014(), grey(x, copies=8)), "warning")
    assert [int(u) for u in finding.units] == list(range(1, 8))


def test_two_logits_that_mirror_each_other_are_no_copies() -> None:
    x = noise(500, 1).double()
    assert checked(SND014(), Stream.of(torch.cat([x, -x], 1))).state == "not_applicable"
