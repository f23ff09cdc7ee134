import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import sonde
from findings._nets import assert_clear, assert_raised
from findings._tables import bundled, evidence_with, table_of
from sonde.findings.codes.snd073 import SND073, idle_columns
from sonde.report import Report


@pytest.mark.truth("the columns that were added to a table of scikit-learn")
def test_constant_and_copied_columns_are_named_and_the_table_alone_is_clear() -> None:
    x, _, names = bundled("wine")
    assert_clear(SND073().check(evidence_with(x, names)))
    answer = (x[:, 0] > 13).astype(float)
    more = [x[:, 0] * 1.8 + 32, -x[:, 4], np.full(len(x), 7.0), answer, 1 - answer, x[:, 2]]
    whole = np.column_stack([x, *more])
    found = idle_columns(table_of(whole), 0.05)
    n = x.shape[1]
    assert found.copies == ((n, 0, False), (n + 1, 4, False), (n + 5, 2, True))
    assert found.constant == (n + 2,)
    finding = assert_raised(SND073().check(evidence_with(whole)), "note")
    assert finding.figure.value == 4
    assert "column 13 is a multiple (plus a constant) of column 0" in finding.sentence


@pytest.mark.truth("the share of numbers that were taken away")
def test_missing_numbers_are_a_note_and_a_warning_from_a_fifth_on() -> None:
    x, _, names = bundled("wine")
    for share, level in ((0.1, "note"), (0.3, "warning")):
        holes = x.copy()
        rows = np.arange(len(x)) < round(share * len(x))
        holes[rows, 5] = np.nan
        finding = assert_raised(SND073().check(evidence_with(holes, names)), level)
        assert finding.figure.value == pytest.approx(rows.mean())
        assert finding.sentence.startswith(f"Numbers are missing: {names[5]} in ")
    holes = x.copy()
    holes[:3, 5] = np.nan
    assert_clear(SND073().check(evidence_with(holes, names)))


def scanned_with_constant(name: str) -> Report:
    """Scan a model of three columns, after the column ``name`` was set to 1.7 in all rows.

    The model adds twice the height and the age, and does not read the column ``lot``.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(150, 3, generator=draw)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 0, 0], [0, 1, 0], [2, 1, 0], [2, -1, 0]]))
        net[1].weight.copy_(torch.tensor([[0.5, 0.5, 0.25, 0.25]]))
        y = net(x)[:, 0] + 0.1 * torch.randn(150, generator=draw)
    frame = pd.DataFrame(x.numpy(), columns=["height", "age", "lot"])
    frame[name] = 1.7
    return sonde.scan(net, frame.assign(target=y.numpy()), only="SND073", progress=False)


@pytest.mark.truth("a column that the model reads, and one that it does not, of one value")
@pytest.mark.parametrize(("name", "level"), [("height", "warning"), ("lot", "note")])
def test_a_constant_column_is_a_warning_if_the_model_lost_by_it(name: str, level: str) -> None:
    (finding,) = scanned_with_constant(name).findings
    assert (finding["level"], f"{name} has the same value" in finding["sentence"]) == (level, True)
    assert ("may have learned with other values" in finding["sentence"]) == (level == "warning")
