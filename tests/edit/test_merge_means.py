"""Means of models: closed forms, pooled least squares, points on an arc."""

import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.edit import FisherMerge, RegMean, Slerp
from sonde.stats import Moments


def regressions(seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)
    rows, weights, answers = [], [], []
    for n in (30, 80):
        x = torch.randn(n, 6, generator=generator, dtype=torch.float64) + 1.0
        y = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        rows.append(x)
        answers.append(y)
        weights.append(torch.linalg.lstsq(x, y).solution.T)
    return rows, answers, weights


@pytest.mark.truth("least squares on the rows of both models at once")
@pytest.mark.parametrize("transposed", [False, True])
def test_regression_mean_is_pooled_least_squares(transposed):
    rows, answers, weights = regressions()
    pooled = torch.linalg.lstsq(torch.cat(rows), torch.cat(answers)).solution.T
    weights = [w.T for w in weights] if transposed else weights
    rule = RegMean([{"0": Moments().observe(x)} for x in rows], 1.0, transposed)
    merged = rule.merge("0.weight", torch.zeros_like(weights[0]), weights)
    torch.testing.assert_close(merged, pooled.T if transposed else pooled)
    bias = [torch.ones(3), torch.zeros(3)]
    assert rule.merge("0.bias", torch.zeros(3), bias).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.truth("the formula with the matrices written out")
def test_regression_mean_with_smaller_entries_beside_the_diagonal():
    rows, _, weights = regressions()
    grams = [x.T @ x for x in rows]
    grams = [0.9 * g + 0.1 * torch.diag(g.diagonal()) for g in grams]
    expected = torch.linalg.solve(sum(grams), sum(g @ w.T for g, w in zip(grams, weights)))  # noqa: B905
    rule = RegMean([{"0": Moments().observe(x)} for x in rows])
    merged = rule.merge("0.weight", torch.zeros(3, 6), weights)
    torch.testing.assert_close(merged, expected.T)


def test_what_no_model_has_inputs_for_stays_the_mean():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    rule = RegMean([{"0": Moments().observe(x)}] * 2)
    weights = [torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 8.0]])]
    torch.testing.assert_close(
        rule.merge("0.weight", torch.zeros(1, 2), weights), torch.tensor([[2.0, 6.0]])
    )


@pytest.mark.truth("weighted mean of numbers")
def test_fisher_merge_weighs_each_entry():
    fishers = [{"w": torch.tensor([3.0, 0.0, 1.0])}, {"w": torch.tensor([1.0, 0.0, 0.0])}]
    models = [torch.tensor([1.0, 2.0, 5.0]), torch.tensor([5.0, 4.0, 7.0])]
    merged = FisherMerge(fishers).merge("w", torch.zeros(3), models)
    assert merged.tolist() == [2.0, 3.0, 5.0]
    assert FisherMerge(fishers).merge("v", torch.zeros(3), models).tolist() == [3.0, 3.0, 6.0]


@pytest.mark.truth("a turn in the plane by the share of the angle")
@pytest.mark.parametrize("angle", [1e-5, 0.01, 1.0, 3.0])
def test_slerp_turns_by_its_share_of_the_angle(angle):
    angle = torch.tensor(angle, dtype=torch.float64)
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    other = torch.stack([angle.cos(), angle.sin()]).reshape(1, 2)
    merged = Slerp(0.3).merge("w", one, [other])
    expected = torch.stack([(0.3 * angle).cos(), (0.3 * angle).sin()]).reshape(1, 2)
    torch.testing.assert_close(merged, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(Slerp(0.0).merge("w", one, [other]), one)
    torch.testing.assert_close(Slerp(1.0).merge("w", one, [other]), other)


def test_parallel_and_empty_tensors_are_joined_by_a_line():
    one = torch.tensor([1.0, 2.0])
    assert Slerp().merge("w", one, [one]).tolist() == [1.0, 2.0]
    assert Slerp().merge("w", one, [3 * one]).tolist() == [2.0, 4.0]
    assert Slerp().merge("w", torch.zeros(2), [one]).tolist() == [0.5, 1.0]


def test_missing_and_foreign_statistics_are_refused():
    rule = RegMean([{"0": Moments().observe(torch.randn(9, 4))}] * 2)
    with pytest.raises(ShapeError, match=r"expected inputs of 6 features for 0\.weight, got 4"):
        rule.merge("0.weight", torch.zeros(3, 6), [torch.zeros(3, 6)] * 2)
    with pytest.raises(InputError, match="moments of each of 3 models, got 2"):
        rule.merge("0.weight", torch.zeros(3, 6), [torch.zeros(3, 6)] * 3)
    with pytest.raises(ShapeError, match="Fit it on this model"):
        FisherMerge([{"w": torch.ones(2)}]).merge("w", torch.zeros(3), [torch.ones(3)])


def test_opposite_tensors_have_no_arc():
    one = torch.randn(7, dtype=torch.float64)
    with pytest.raises(InputError, match="opposite tensors for w"):
        Slerp().merge("w", one, [-2.5 * one])
    assert Slerp(1.0).merge("w", one, [-2.5 * one]).equal(-2.5 * one)
    assert Slerp(0.0).merge("w", one, [-2.5 * one]).equal(one)
    assert Slerp(0.3).merge("w", torch.tensor([2.0]), [torch.tensor([-1.0])]).item() == (
        pytest.approx(1.1)
    )


def test_what_was_fitted_for_a_merge_is_checked():
    x, nan = torch.randn(9, 2), float("nan")
    with pytest.raises(InputError, match=r"only the diagonal for 0 of model 1.*scatter='full'"):
        RegMean([{"0": Moments().observe(x)}, {"0": Moments("diag").observe(x)}])
    for wrong in (-0.1, nan):
        with pytest.raises(InputError, match="of at least 0, got other values in w of model 0"):
            FisherMerge([{"w": torch.tensor([1.0, wrong])}])
    shapes, fisher = {"net.w": (1,)}, {"w": torch.ones(1)}
    with pytest.raises(InputError, match=r"such as 'net\.w', got 'w'"):
        FisherMerge([fisher]).check(shapes)
    with pytest.raises(InputError, match=r"'net\.w' of every model, got none of model 1"):
        FisherMerge([{"net.w": torch.ones(1)}, {}]).check(shapes)
    with pytest.raises(InputError, match="such as '0', got '1'"):
        RegMean([{"1": Moments().observe(x)}]).check({"0.weight": (2, 2)})
