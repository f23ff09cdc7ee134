"""What detectors cannot see: the figures of docs/howto/choose_a_detector.md."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from sonde.detect import KNN, Mahalanobis, ViM

HEAD = (torch.zeros(2, 64), torch.ones(2))
ALIKE = torch.ones(1, 2)


def _auroc(score, usual, unusual):
    scores = torch.cat([score(usual), score(unusual)])
    kind = torch.arange(len(scores)) >= len(usual)
    return float(roc_auc_score(kind.numpy(), scores.double().numpy()))


def _about(value):
    return pytest.approx(value, abs=0.02)


def _with_a_copy():
    """Return fitted rows of which unit 5 follows unit 3, fresh ones, and some where it does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 64, generator=generator)
    x[:, 5] = x[:, 3] + 0.01 * x[:, 5]
    fitted, usual = x[:2000], x[2000:]
    broken = usual.clone()
    broken[:, 5] = usual[:, 5].roll(1)
    return fitted, usual, broken


@pytest.mark.truth("a planted break of what two units share")
def test_shrinkage_hides_a_copy_that_no_longer_follows():
    fitted, usual, broken = _with_a_copy()
    scorers = {
        name: Mahalanobis(shrinkage=name).fit(fitted).score for name in ("oas", 0.1, 0.01, 0.0)
    }
    found = [_auroc(score, usual, broken) for score in scorers.values()]
    assert found == [_about(0.53), _about(0.65), _about(0.86), _about(0.99)]
    vim = ViM(principal=63).fit(fitted, logits=ALIKE.repeat(2000, 1), head=HEAD)
    assert _auroc(lambda x: vim.score(x, ALIKE.repeat(len(x), 1)), usual, broken) == _about(1.0)
    assert _auroc(KNN(k=10).fit(fitted).score, usual, broken) == _about(0.58)


@pytest.mark.truth("planted rows that one unit dominates")
def test_nearest_neighbours_turn_round_under_heavy_tails():
    torch.manual_seed(0)
    rows = torch.distributions.StudentT(1.5).sample((3000, 32))
    fitted, usual = rows[:2000], rows[2000:]
    stuck = usual.clone()
    stuck[:, 3] = 100 * usual.abs().amax(1)
    assert _auroc(KNN(k=10).fit(fitted).score, usual, stuck) == _about(0.01)
    assert _auroc(Mahalanobis().fit(fitted).score, usual, stuck) == _about(1.0)


def test_vim_without_more_rows_than_principal_directions_has_no_residual():
    fitted, _, _ = _with_a_copy()
    few = ViM(principal=40).fit(fitted[:40], logits=ALIKE.repeat(40, 1), head=HEAD)
    assert few.flags == ("dead",)
