import torch
from torch import nn

import sonde
from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from scan._zoo import quiet
from sonde.data.inputs import constant_rows
from sonde.findings.codes.snd045 import SND045


def test_constant_channels_lines_and_rows_are_blank_and_tokens_are_not() -> None:
    colour = torch.rand(3, 3, 4, 4)
    colour[1] = torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    steps = torch.rand(3, 5, 4)
    steps[2] = torch.rand(4)
    row = torch.rand(3, 9)
    row[0] = 0.0
    for x, blank in ((colour, 1), (steps, 2), (row, 0)):
        found = constant_rows((x,), {})
        assert found is not None
        assert torch.nonzero(found).flatten().tolist() == [blank]
    assert constant_rows((torch.zeros(3, 9, dtype=torch.int64),), {}) is None
    assert constant_rows((torch.zeros(3, 2),), {}) is None
    both = constant_rows((), {"a": colour, "b": row})
    assert both is not None
    assert not both.any()


def test_blank_rows_and_their_copies_are_counted_and_listed() -> None:
    x = torch.randn(120, 12, generator=torch.Generator().manual_seed(0))
    constant = torch.zeros(120, dtype=torch.int64)
    assert_clear(SND045().check(evidence_of(x, columns={"constant": constant})))
    constant[[7, 90]] = 1
    finding = assert_raised(
        SND045().check(evidence_of(x, columns={"constant": constant})), "warning"
    )
    assert finding.examples == (7, 90)
    assert finding.sentence.startswith("2 of 120 inputs (1.7 %) are blank")


def test_a_scan_sees_the_rows_that_hold_one_value() -> None:
    torch.manual_seed(0)
    x = torch.randn(120, 12)
    x[[7, 90]] = torch.tensor([[0.0], [2.5]])
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    report = sonde.scan(net, [{"x": row} for row in x], settings=quiet())
    (found,) = [f for f in report.findings if f["code"] == "SND045"]
    assert found["sentence"].startswith("2 of 120 inputs (1.7 %) are blank")
