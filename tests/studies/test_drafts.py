"""Quality of drafts by hand, for a model that counts upwards."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sonde_studies._drafts import judged


class Counter(nn.Module):
    """Gives the next number, modulo 5, a probability of a half, and the others an eighth."""

    def forward(self, ids):
        """Return logits (text pos token)."""
        probability = torch.full((*ids.shape, 5), 0.125)
        return SimpleNamespace(logits=probability.scatter(2, (ids[..., None] + 1) % 5, 0.5).log())


@pytest.mark.truth("log-probabilities and hits of six drafts by hand")
def test_drafts_are_judged_by_likelihood_and_by_what_follows():
    texts = torch.tensor([[0, 1, 2, 3], [4, 0, 1, 1]])
    drafts = torch.tensor(
        [
            [[0, 1, 2, 3], [0, 1, 2, 2], [0, 1, 2, 3]],
            [[4, 0, 3, 3], [4, 0, 1, 2], [4, 0, 0, 1]],
        ]
    )
    found = judged(Counter(), drafts, texts, given=2, more=2)
    half, eighth = torch.tensor([0.5, 0.125]).log().tolist()
    each = [half, (half + eighth) / 2, half, eighth, half, (half + eighth) / 2]
    assert found["mean"] == pytest.approx(sum(each) / 6, rel=1e-6)
    assert found["best"] == pytest.approx(half, rel=1e-6)
    assert found["next bytes"] == 0.5
    assert found["different"] == 2.5
    assert judged(Counter(), drafts, texts, given=2, more=1)["next bytes"] == 1.0
