import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from findings._evidence import digits, evidence_of, states, versus_of
from sonde.findings.evidence.inputs.unusual_rows import far_scores, rows_section
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.stats.linear_classifiers import metric_times


def test_a_far_row_is_listed_and_the_others_are_not() -> None:
    x = digits()[0][:400].double().clone()
    x[7] = 8.0
    section = rows_section(evidence_of(x, ids=[f"row {i}" for i in range(400)]))
    assert section["far"][0]["id"] == "row 7"
    assert section["far"][0]["z"] > 8
    assert len(section["far"]) <= 20


@pytest.mark.truth("median and median deviation of sorted distances in numpy")
def test_far_scores_are_robust_z_of_the_fifth_distance() -> None:
    x = np.random.default_rng(0).normal(size=(101, 3))
    z, _ = far_scores(evidence_of(x))
    evidence = evidence_of(x)
    rows = shared_rows(evidence).x(0).numpy()
    fifth = np.sort(np.linalg.norm(rows[:, None] - rows, axis=2), axis=1)[:, 5]
    logs = np.log(fifth)
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    assert np.allclose(z.numpy(), (logs - np.median(logs)) / spread, atol=1e-9)


@pytest.mark.truth("principal components of scikit-learn")
def test_the_map_lies_along_the_two_main_directions() -> None:
    x, label = digits()
    evidence = evidence_of(x[:300].double(), label=label[:300] % 3)
    found = rows_section(evidence)["map"]
    assert found["by"] == "label"
    points = np.array([[p["x"], p["y"]] for p in found["points"]])
    fitted = PCA(2, svd_solver="full").fit(shared_rows(evidence).x(0).numpy())
    truth = fitted.transform(shared_rows(evidence).x(0).numpy())
    for k in range(2):
        assert abs(np.corrcoef(points[:, k], truth[:, k])[0, 1]) > 0.99999
    assert np.allclose(found["axes"], fitted.explained_variance_ratio_, atol=1e-3)


@pytest.mark.slow
def test_against_other_the_map_shows_both_sources() -> None:
    x, label = digits()
    mine, theirs = states(x[:1300])[0], states(x[1300:])[0]
    evidence = versus_of(mine, theirs, label=label[:1300], other={"label": label[1300:]})
    found = rows_section(evidence)["map"]
    assert found["by"] == "source"
    assert {p["class"] for p in found["points"]} == {str(k) for k in range(10)}
    assert len(found["points"]) == 1000
    assert sum(p["label"] == "OTHER" for p in found["points"]) == 497


@pytest.mark.truth("numpy's solver")
def test_metric_is_the_inverse_of_the_shrunk_covariance() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    scatter, v = x.T @ x, torch.eye(6, dtype=torch.float64)[:, :2]
    from sklearn.covariance import OAS

    covariance = OAS(assume_centered=True).fit(x.numpy()).covariance_
    truth = np.linalg.solve(covariance, v.numpy())
    assert np.allclose(metric_times(scatter, 200, v).numpy(), truth)
    flat = metric_times(torch.zeros(6, 6, dtype=torch.float64), 200, v)
    assert not bool(flat.any())
    diagonal = metric_times(scatter.diagonal(), 200, v)
    assert diagonal.shape == v.shape
    assert bool((diagonal[2:] == 0).all())
