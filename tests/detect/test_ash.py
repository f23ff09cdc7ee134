import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from detect.head_rows import made
from sonde.core.edit import EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.site import Site
from sonde.detect.ash import ASH
from sonde.tap import editing

ROW = torch.tensor([[4.0, 1.0, 3.0, 2.0]], dtype=torch.float64)
SITE = Site("head", port="in")
PEER = {
    "s": [-16.02314567, -20.25411224, -9.86652088, 1.36402321],
    "b": [-4.67524624, -6.88861752, -3.88414717, -0.04131275],
    "p": [-2.63374639, -4.85811138, -3.83314323, -0.34047562],
}


def _shape(x, **parameters):
    scorer = ASH(**parameters).fit(x, head=(torch.eye(x.shape[1], dtype=x.dtype), None))
    return scorer.edit.apply(x, SITE, EditContext())


@pytest.mark.truth("worked out by hand")
@pytest.mark.parametrize(
    ("variant", "want"),
    [
        ("s", [16.69093553, 0.0, 12.51820165, 0.0]),
        ("b", [5.0, 0.0, 5.0, 0.0]),
        ("p", [4.0, 0.0, 3.0, 0.0]),
    ],
)
def test_known_values(variant, want):
    assert _shape(ROW, variant=variant, remove=0.5)[0].tolist() == pytest.approx(want, rel=1e-8)


@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows")
@pytest.mark.parametrize("variant", PEER)
def test_matches_a_peer(variant):
    rows = made()
    scorer = ASH(variant=variant, remove=0.65).fit(rows.x, head=rows.head)
    assert scorer.score(rows.fresh).tolist() == pytest.approx(PEER[variant], rel=1e-5)


@pytest.mark.truth("numpy, one row at a time")
@pytest.mark.parametrize("variant", ["s", "b", "p"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_brute_force(variant, share):
    rows = made()
    usual, want = rows.x[rows.x.sum(1) > 0], []
    for row in usual.numpy():
        kept = np.argsort(-row, kind="stable")[: max(1, 6 - round(6 * share))]
        shaped = np.zeros(6)
        shaped[kept] = {
            "s": row[kept] * math.exp(row.sum() / row[kept].sum()),
            "b": row.sum() / len(kept),
            "p": row[kept],
        }[variant]
        logits = rows.weight.numpy() @ shaped + rows.bias.numpy()
        want.append(-logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    scorer = ASH(variant=variant, remove=share).fit(rows.x, head=rows.head)
    np.testing.assert_allclose(scorer.score(usual), want, rtol=1e-9, atol=1e-9)


@pytest.mark.truth("row by row; rows of a model lie along the last of any number of axes")
@pytest.mark.parametrize("variant", ["s", "b", "p"])
def test_rows_of_activations_with_more_axes(variant):
    x = made().x[:40].reshape(5, 8, 6)
    edit = ASH(variant=variant, remove=0.5).fit(x[0], head=(torch.eye(6).double(), None)).edit
    found = edit.apply(x, SITE, EditContext())
    want = [edit.apply(row[None], SITE, EditContext())[0] for row in x.flatten(0, 1)]
    torch.testing.assert_close(found, torch.stack(want).reshape(5, 8, 6))


def test_rows_without_anything_positive_are_left_as_they_are():
    x = torch.cat([-ROW, torch.zeros_like(ROW), ROW])
    scorer = ASH().fit(x, head=(torch.eye(4, dtype=torch.float64), None))
    shaped = scorer.edit.apply(x, SITE, EditContext())
    assert (shaped == x).all(1).tolist() == [True, True, False]
    assert scorer.conventions["units_below_zero"] == 4


def test_the_activation_is_never_written_to():
    x = ROW.clone()
    _shape(x, remove=0.5)
    assert torch.equal(x, ROW)


def test_strength_mixes_and_zero_is_the_row_itself():
    edit = ASH(remove=0.5).fit(ROW, head=(torch.eye(4).double(), None)).edit
    full = edit.apply(ROW, SITE, EditContext())
    assert replace(edit, strength=0.0).apply(ROW, SITE, EditContext()) is ROW
    half = replace(edit, strength=0.5).apply(ROW, SITE, EditContext())
    torch.testing.assert_close(half, (full + ROW) / 2)


@pytest.mark.truth("a live model with the edit opened at the input of its head")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_edit_on_a_live_model(dtype):
    rows = made(dtype)
    head = nn.Linear(6, 3, dtype=dtype)
    head.load_state_dict({"weight": rows.weight, "bias": rows.bias})
    net = nn.Sequential(nn.Identity(), head)
    scorer = ASH(variant="b").fit(rows.x, head=rows.head)
    with torch.no_grad(), editing(net, scorer.edit, "1:in"):
        energy = -torch.logsumexp(net(rows.fresh).float(), 1)
    slack = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(scorer.score(rows.fresh), energy, rtol=slack, atol=slack)


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"ASH: expected remove in \[0, 1\), got 1.0"):
        ASH(remove=1.0)
    with pytest.raises(
        ShapeError, match="ASH: expected rows of width 6, the input width of the model's"
    ):
        ASH().fit(ROW, head=made().head)
