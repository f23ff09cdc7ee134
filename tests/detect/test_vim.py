import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from detect.head_rows import made
from sonde.core.errors import InputError, ShapeError
from sonde.detect.vim import ViM
from sonde.engine.running import Running

WEIGHT, BIAS = torch.eye(2, 3).double(), torch.tensor([0.5, -0.5]).double()
X = torch.tensor(
    [[3.0, 0.0, 0.1], [0.0, 3.0, -0.1], [2.0, 1.0, 0.2], [1.0, 2.0, -0.2]], dtype=torch.float64
)


def _fit(detector, x, weight, bias):
    return detector.fit(x, logits=x @ weight.T + bias, head=(weight, bias))


def _score(scorer, y, weight, bias):
    return scorer.score(y, y @ weight.T + bias)


@pytest.mark.truth("worked out by hand")
def test_known_values():
    scorer = _fit(ViM(principal=2, alpha="paper"), X, WEIGHT, BIAS)
    assert scorer.origin.tolist() == pytest.approx([-0.5, 0.5, 0.0])
    assert scorer.alpha == pytest.approx(25.00069543, rel=1e-8)
    row = torch.tensor([[1.0, 1.0, 2.0]]).double()
    assert _score(scorer, row, WEIGHT, BIAS).tolist() == pytest.approx([47.63269374], rel=1e-8)


@pytest.mark.truth("pytorch-ood 0.4.0 on the same rows")
def test_matches_a_peer():
    rows = made()
    scorer = _fit(ViM(principal=3, alpha="paper"), rows.x, rows.weight, rows.bias)
    assert scorer.alpha == pytest.approx(1.14009416, rel=2e-6)
    want = [3.77095556, -3.47318649, -2.25394130, 0.96686602]
    got = _score(scorer, rows.fresh, rows.weight, rows.bias)
    assert got.tolist() == pytest.approx(want, rel=2e-5)


@pytest.mark.truth("numpy over all rows in memory, sklearn.decomposition.PCA")
@pytest.mark.parametrize("alpha", ["rms", "paper"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_brute_force(alpha, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((400, 8)) * np.arange(1, 9) + 3.0, rng.standard_normal((30, 8)) * 5
    weight, bias = rng.standard_normal((5, 8)), rng.standard_normal(5)
    u = -np.linalg.lstsq(weight, bias, rcond=None)[0]
    both = np.concatenate([x - u, u - x])  # symmetric about u, so that PCA does not centre it away
    rest = np.asarray(PCA(n_components=8).fit(both).components_)[3:]
    length = np.linalg.norm((x - u) @ rest.T, axis=1)
    size = np.sqrt((length**2).mean()) if alpha == "rms" else length.mean()
    weighed = (x @ weight.T + bias).max(1).mean() / size
    evidence = np.log(np.exp(y @ weight.T + bias).sum(1))
    want = weighed * np.linalg.norm((y - u) @ rest.T, axis=1) - evidence
    tensors = [torch.from_numpy(v).to(dtype) for v in (x, y, weight, bias)]
    scorer = _fit(ViM(principal=3, alpha=alpha), tensors[0], *tensors[2:])
    assert scorer.value == pytest.approx(weighed, rel=1e-5)
    np.testing.assert_allclose(
        _score(scorer, *tensors[1:]), want, rtol=1e-10 if dtype == torch.float64 else 2e-4
    )


@pytest.mark.truth("the minimum-norm solution without the direction that is equal for all classes")
def test_a_float32_head_that_sums_to_zero_over_classes_has_the_origin_of_its_other_directions():
    random = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(5, *d, generator=random).double() for d in ((8,), ()))
    weight, bias = weight - weight.mean(0), bias - bias.mean()
    wanted = -(torch.linalg.pinv(weight, rtol=1e-9) @ bias)
    x = torch.randn(60, 8, generator=random) + weight[0].float()
    scorer = _fit(ViM(principal=3), x, weight.float(), bias.float())
    torch.testing.assert_close(scorer.origin.double(), wanted, rtol=1e-5, atol=1e-6)


def test_sees_what_the_logits_cannot():
    scorer = _fit(ViM(principal=2), X, WEIGHT, BIAS)
    rows = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [1.0, 1.0, 5.0]]).double()
    usual, near, far = _score(scorer, rows, WEIGHT, BIAS).tolist()
    assert usual < near < far


@pytest.mark.truth("the mean over all rows; the spread of alpha over samples")
def test_a_sample_states_its_error():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((2000, 3)) + 2.0)
    whole = _fit(ViM(1, "paper", m=2000), x, WEIGHT, BIAS)
    assert whole.conventions["alpha_se"] == 0.0
    parts = []
    for seed in range(20):
        part = ViM(1, "paper", m=200).fit(
            x, logits=x @ WEIGHT.T + BIAS, head=(WEIGHT, BIAS), seed=seed
        )
        assert part.flags == ("sampled",)
        parts.append((part.alpha - whole.alpha) / part.conventions["alpha_se"])
    assert abs(np.mean(parts)) < 0.6
    assert 0.7 < np.std(parts) < 1.4


def test_any_split_gives_one_answer():
    rows = made()
    running = Running(ViM(principal=3))
    for part in rows.x.split(7):
        logits = part @ rows.weight.T + rows.bias
        running.update(part, logits=logits, head=(rows.weight, rows.bias))
    whole = _fit(ViM(principal=3), rows.x, rows.weight, rows.bias)
    assert running.result().value == pytest.approx(whole.value, rel=1e-12)


def test_rows_without_residual_leave_the_energy():
    x = torch.cat([X[:, :2], torch.zeros(4, 1).double()], 1)
    scorer = _fit(ViM(principal=2), x, WEIGHT, BIAS)
    assert scorer.flags == ("dead",)
    row = torch.tensor([[1.0, 1.0, 9.0]]).double()
    energy = -torch.logsumexp(row @ WEIGHT.T + BIAS, 1)
    torch.testing.assert_close(_score(scorer, row, WEIGHT, BIAS), energy)


@pytest.mark.parametrize(("dim", "want"), [(64, 32), (767, 383), (768, 512), (2048, 1000)])
def test_how_many_directions_are_usual(dim, want):
    assert ViM()._principal(dim) == want


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="ViM: expected principal below dim=3, got 3"):
        _fit(ViM(principal=3), X, WEIGHT, BIAS)
    with pytest.raises(InputError, match="ViM: expected a positive mean of the largest logits"):
        _fit(ViM(), X, WEIGHT, BIAS - 9.0)
    with pytest.raises(InputError, match="ViM: expected m of at least 1, got 0"):
        ViM(m=0)
    with pytest.raises(
        ShapeError, match="ViM: expected rows of width 3, the input width of the model's final"
    ):
        ViM().fit(X[:, :2], logits=X[:, :2], head=(WEIGHT, BIAS))
    scorer = _fit(ViM(), X, WEIGHT, BIAS)
    with pytest.raises(ShapeError, match=r"ViM.score: expected classes=2 \(as fitted\), got"):
        scorer.score(X, X)
    with pytest.raises(InputError, match="the model has no final linear layer"):
        ViM().fit(X, logits=X)
