"""A scan that could not judge answers does not read as if all were well."""

import pytest
import torch
from torch import nn

import sonde
from sonde.findings.settings import ScanSettings


def said(label) -> str:
    torch.manual_seed(0)
    x = torch.randn(120, 6)
    items = [{"x": row} | label(i) for i, row in enumerate(x)]
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return " ".join(str(sonde.scan(net, items, settings=ScanSettings(progress=False))).split())


@pytest.mark.slow
def test_the_reason_stands_in_the_first_lines() -> None:
    numbers = said(lambda i: {"label": 0.5 + i})
    assert (
        "not judged: the labels are numbers, but the model does not return a single number"
        in numbers
    )
    bare = said(lambda _: {})
    assert (
        "nothing found" not in bare
        or "whether the answers are correct was not checked: the data" in bare
    )
    assert "--label-column" in bare
    judged = said(lambda i: {"label": i % 3})
    assert "not checked" not in judged
