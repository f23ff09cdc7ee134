"""Rows in float32 are scored as in float64, whatever unit dominates them or mean they share."""

import pytest
import torch

from sonde.core.instrument import score_needs
from sonde.detect import COSTARR, DictLookup, Mahalanobis, PatchCore, RelativeMahalanobis, ViM

HEAD = torch.randn(5, 24, generator=torch.Generator().manual_seed(1)) / 5, torch.ones(5)


def _rows(kind):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(600) % 5
    centres = 2 * torch.randn(5, 24, generator=generator)
    x = torch.randn(600, 24, generator=generator) + centres[label]
    if kind == "massive unit":
        x[:, 7] += 1e4
    else:
        x += 1000
    return x, label


@pytest.mark.truth("the same rows and logits in float64")
@pytest.mark.parametrize("kind", ["massive unit", "large mean"])
@pytest.mark.parametrize(
    "method", [COSTARR, DictLookup, Mahalanobis, PatchCore, RelativeMahalanobis, ViM]
)
def test_scores_of_float32_rows_are_those_of_float64(method, kind):
    x, label = _rows(kind)
    logits = (x - x.mean(0)) @ HEAD[0].T + 9.0
    found = []
    for dtype in (torch.float32, torch.float64):
        head = tuple(part.to(dtype) for part in HEAD)
        rows, evidence = x.to(dtype), logits.to(dtype)
        scorer = method().fit(rows[:400], label[:400], logits=evidence[:400], head=head)
        columns = {"x": rows[400:], "logits": evidence[400:]}
        found.append(scorer.score(*(columns[name] for name in score_needs(method()))).double())
    got, want = found
    assert float((got - want).abs().max()) < 2e-5 * float(want.std())
