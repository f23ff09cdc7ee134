"""Pairs whose nuisance lies in some units, heads by hand, and columns that are wrong."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from sonde import InputError, Model
from sonde_studies.parts.rows import apart
from sonde_studies.recipes.change_pairs import PLAIN, SHUFFLED, WEIGHTED, change_pairs

IDENTITY = Model(nn.Sequential(nn.Identity()).eval())


def pairs(n=400, nuisance=3.0):
    """Return pairs that always differ in the first units, and if changed in the last two."""
    draw = torch.Generator().manual_seed(5)
    before = torch.randn(n, 6, generator=draw)
    changed = torch.randint(0, 2, (n,), generator=draw)
    gap = torch.randn(n, 6, generator=draw) * torch.tensor([nuisance] * 4 + [0.0] * 2)
    gap[:, 4:] += changed[:, None] * torch.randn(n, 2, generator=draw)
    after = before + gap + 0.3 * torch.randn(n, 6, generator=draw)
    rows = [{"before": a, "after": b, "changed": int(c)}
            for a, b, c in zip(before, after, changed, strict=True)]  # fmt: skip
    return before, after, changed.numpy(), rows


@pytest.mark.truth("AUROC of scikit-learn; nuisance that is known to lie in four units")
def test_weights_leave_out_the_nuisance():
    before, after, changed, rows = pairs()
    found = change_pairs(IDENTITY, rows, site="0", seed=1, progress=False)
    score = {row["arm"]: row["AUROC"] for row in found.rows}
    _, held = apart(changed, 0.4, 1, owner=np.arange(len(changed)))
    length = (before - after).double().square().sum(1).numpy()[held]
    assert score[PLAIN] == pytest.approx(roc_auc_score(changed[held], length), abs=1e-6)
    own = (before - after)[:, 4:].square().sum(1).numpy()[held]
    assert score[WEIGHTED] > score[PLAIN] + 0.2
    assert score[WEIGHTED] == pytest.approx(roc_auc_score(changed[held], own), abs=0.06)
    assert score[SHUFFLED] == pytest.approx(0.5, abs=0.15)
    assert found.verdict != PLAIN
    assert found.level == "clear"


@pytest.mark.truth("a difference without nuisance")
def test_without_nuisance_the_plain_difference_will_do():
    rows = pairs(nuisance=0.3)[-1]
    found = change_pairs(IDENTITY, rows, site="0", progress=False)
    assert found.verdict != "not told"
    assert {row["arm"]: row["AUROC"] for row in found.rows}[PLAIN] > 0.75


def test_an_empty_side_and_one_side_twice_are_refused():
    rows = pairs()[3]
    rows[7] = rows[7] | {"after": None}
    with pytest.raises(InputError, match=r"column 'after' .* first in row 7"):
        change_pairs(IDENTITY, rows, site="0", progress=False)
    with pytest.raises(InputError, match="two different columns, got 'before' twice"):
        change_pairs(IDENTITY, rows, after_column="before", site="0", progress=False)


def test_a_column_of_one_value_is_refused():
    rows = [row | {"changed": 1} for row in pairs()[-1]]
    with pytest.raises(InputError, match="expected 0 and 1"):
        change_pairs(IDENTITY, rows, site="0", progress=False)
    rows = [row | {"changed": "yes"} for row in rows]
    with pytest.raises(InputError, match="ten times or more, got yes"):
        change_pairs(IDENTITY, rows, site="0", progress=False)
