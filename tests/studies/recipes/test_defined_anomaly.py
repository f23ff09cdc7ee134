"""Definitions of normal over planted clusters, by hand; labels that are missing."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde.detect import Mahalanobis
from sonde_studies.parts.rows import apart
from sonde_studies.recipes.defined_anomaly import BLIND, NAMED, OTHER, REFIT, defined_anomaly

IDENTITY = Model(nn.Sequential(nn.Identity()).eval())


def clusters(n=300, spread=0.7):
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (n,), generator=draw)
    x = 2.0 * torch.eye(7)[label] + spread * torch.randn(n, 7, generator=draw)
    return x, label.numpy(), [{"x": v, "label": int(c)} for v, c in zip(x, label, strict=True)]


def distance(x, label, asked):
    fitted = Mahalanobis().fit(torch.from_numpy(x), label=torch.from_numpy(label))
    return fitted.score(torch.from_numpy(asked)).numpy()


@pytest.mark.truth("cosines to class means and the AUROC of scikit-learn, by hand")
def test_a_definition_scores_by_the_nearest_class_on_either_side():
    x, label, rows = clusters()
    found = defined_anomaly(IDENTITY, rows, site="0", definitions=3, seed=7, progress=False)
    kept, held = apart(label, 0.4, 7, owner=np.arange(len(label)))
    x = x.double()
    x = ((x - x[kept].mean(0)) / x[kept].std(0)).numpy()
    means = np.stack([x[kept[label[kept] == k]].mean(0) for k in range(5)])
    near = (x[held] @ means.T) / np.linalg.norm(x[held], axis=1)[:, None]
    near /= np.linalg.norm(means, axis=1)
    draw = np.random.default_rng(7)
    for row in found.rows:
        own = draw.permutation(5)[:2]
        assert row["normal"] == ", ".join(sorted(map(str, own)))
        rest = [k for k in range(5) if k not in own]
        score = near[:, rest].max(1) - near[:, own].max(1)
        wrong = ~np.isin(label[held], own)
        assert row[NAMED] == pytest.approx(roc_auc_score(wrong, score), abs=1e-6)
        assert row[NAMED] > row[BLIND]
        sides = [kept[np.isin(label[kept], side)] for side in (own, rest)]
        near_own, near_rest = (distance(x[rows], label[rows], x[held]) for rows in sides)
        assert row[REFIT] == pytest.approx(roc_auc_score(wrong, near_own - near_rest), abs=1e-6)
        assert row[REFIT] > 0.95


@pytest.mark.truth("states that say nothing of the class")
def test_noise_follows_no_definition():
    _, label, _ = clusters()
    noise = torch.randn(300, 7, generator=torch.Generator().manual_seed(2))
    rows = [{"x": v, "label": int(c)} for v, c in zip(noise, label, strict=True)]
    found = defined_anomaly(IDENTITY, rows, site="0", progress=False)
    assert found.verdict == "it cannot"
    assert all(abs(float(found.facts[f"mean, {a}"]) - 0.5) < 0.12 for a in (NAMED, REFIT, OTHER))


def test_rows_without_labels_are_refused():
    rows = [{"x": row["x"]} for row in clusters()[-1]]
    with pytest.raises(InputError, match=r"300 of 300 rows without one.* Name"):
        defined_anomaly(IDENTITY, rows, site="0", progress=False)


def test_the_command_asks_it():
    ran = run_words("recipe", "defined-anomaly", "sonde:digits", "sonde:digits/test",
                    "--limit", "150", "--definitions", "2", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(ran.json()["rows"]) == 2
