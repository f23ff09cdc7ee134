import math

import numpy as np
import pytest
import torch

from detect.head_rows import made
from sonde.core.edit import EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.site import Site
from sonde.detect.scale import SCALE

ROW = torch.tensor([[4.0, 1.0, 3.0, 2.0]], dtype=torch.float64)
IDENTITY = (torch.eye(4, dtype=torch.float64), None)


@pytest.mark.truth("worked out by hand")
def test_known_values():
    edit = SCALE(remove=0.5).fit(ROW, head=IDENTITY).edit
    shaped = edit.apply(ROW, Site("head", port="in"), EditContext())
    want = [16.69093553, 4.17273388, 12.51820165, 8.34546777]
    assert shaped[0].tolist() == pytest.approx(want, rel=1e-8)


@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows")
def test_matches_a_peer():
    rows = made()
    want = [5.54805708, -22.77644920, -9.30789280, -1.90197504]
    scorer = SCALE(remove=0.65).fit(rows.x, head=rows.head)
    assert scorer.score(rows.fresh).tolist() == pytest.approx(want, rel=1e-5)


@pytest.mark.truth("numpy, one row at a time")
@pytest.mark.parametrize("share", [0.0, 0.5, 0.85])
def test_brute_force(share):
    rows = made()
    usual, want = rows.x[rows.x.sum(1) > 0], []
    for row in usual.numpy():
        largest = np.sort(row)[::-1][: max(1, 6 - round(6 * share))]
        logits = rows.weight.numpy() @ row * math.exp(row.sum() / largest.sum()) + rows.bias.numpy()
        want.append(-logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    scorer = SCALE(remove=share).fit(rows.x, head=rows.head)
    np.testing.assert_allclose(scorer.score(usual), want, rtol=1e-9, atol=1e-9)


def test_one_factor_for_a_row_keeps_the_order_of_its_logits():
    rows = made()
    usual = rows.x[rows.x.sum(1) > 0]
    edit = SCALE(remove=0.5).fit(rows.x, head=rows.head).edit
    shaped = edit.apply(usual, Site("head", port="in"), EditContext())
    living = usual > 0
    ratio = (shaped / usual).where(living, torch.zeros_like(shaped))
    largest = ratio.amax(1, keepdim=True).expand_as(ratio)
    torch.testing.assert_close(ratio[living], largest[living])
    assert float(largest.min()) >= math.e


def test_rows_without_anything_positive_are_left_as_they_are():
    x = torch.cat([-ROW, ROW])
    scorer = SCALE().fit(x, head=IDENTITY)
    shaped = scorer.edit.apply(x, Site("head", port="in"), EditContext())
    assert (shaped == x).all(1).tolist() == [True, False]
    assert float(scorer.score(x)[0]) == pytest.approx(-float(torch.logsumexp(-ROW, 1)))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"SCALE: expected remove in \[0, 1\), got -0.1"):
        SCALE(remove=-0.1)
    with pytest.raises(
        ShapeError, match="SCALE: expected rows of width 6, the input width of the model's"
    ):
        SCALE().fit(ROW, head=made().head)
