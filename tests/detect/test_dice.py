import numpy as np
import pytest
import torch

from detect.head_rows import SMALL_HEAD, made
from sonde.core.errors import InputError, ShapeError
from sonde.detect.dice import DICE


@pytest.mark.truth("worked out by hand")
def test_known_values():
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    scorer = DICE(remove=0.5).fit(x, head=SMALL_HEAD)
    assert scorer.threshold == 0.25
    assert scorer.value == 0.5
    row = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    assert scorer.score(row).tolist() == pytest.approx([-2.68026967], rel=1e-8)


@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows")
def test_matches_a_peer():
    rows = made()
    scorer = DICE(remove=0.5).fit(rows.x, head=rows.head)
    assert scorer.threshold == pytest.approx(0.07136101, rel=1e-5)
    want = [-4.08558989, -5.60800171, -4.15478134, -3.23270965]
    assert scorer.score(rows.fresh).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.truth("numpy over all rows in memory")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_brute_force(share):
    rows = made()
    x, y, weight, bias = (v.numpy() for v in rows)
    contribution = weight * x.mean(0)
    sparse = np.where(contribution > np.quantile(contribution, share), weight, 0.0)
    logits = (y[:, None, :] * sparse[None]).sum(2) + bias
    want = -np.log(np.exp(logits).sum(1))
    scorer = DICE(remove=share).fit(rows.x, head=rows.head)
    np.testing.assert_allclose(scorer.score(rows.fresh), want, rtol=1e-10)


def test_units_that_never_matter_cannot_make_evidence():
    rows = made()
    x, spikes = rows.x.clone(), rows.fresh.clone()
    x[:, 4] = 0.0
    scorer = DICE(remove=0.5).fit(x, head=rows.head)
    before = scorer.score(spikes)
    spikes[:, 4] += 100.0
    kept = scorer.head.weight[:, 4]
    assert torch.equal(kept, torch.zeros_like(kept))
    assert torch.equal(scorer.score(spikes), before)


def test_a_head_without_weights_above_the_threshold_is_said_to_be_dead():
    rows = made()
    scorer = DICE().fit(torch.zeros_like(rows.x), head=rows.head)
    assert scorer.flags == ("dead",)
    constant = -torch.logsumexp(rows.bias, 0)
    torch.testing.assert_close(scorer.score(rows.fresh), constant.expand(4))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"DICE: expected remove in \[0, 1\), got 1.0"):
        DICE(remove=1.0)
    rows = made()
    with pytest.raises(
        ShapeError, match="DICE: expected rows of width 6, the input width of the model's"
    ):
        DICE().fit(rows.x[:, :3], head=rows.head)
    with pytest.raises(ShapeError, match=r"DICE.score: expected dim=6 \(as fitted\), got dim=3"):
        DICE().fit(rows.x, head=rows.head).score(rows.x[:, :3])
