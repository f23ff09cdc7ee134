"""What a training in the wild does beside the plain loop: each is said, and none is fatal."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import models
from sonde.core import BatchError, InputError, SiteError, SondeWarning, StateError
from sonde.core.schedule import Schedule
from sonde.tap.training.terms import training
from sonde.train import CauchySchwarzBottleneck, Contrast, NestedDropout, RateReduction

LABEL = torch.tensor([0, 2, 2, 0, 1, 1])


def vectors(n: int = 6) -> Tensor:
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(1))


class Recomputed(nn.Module):
    """Two layers, the first recomputed in the backward pass by torch's older way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda x: self.a(x).tanh(), x, use_reentrant=True)
        assert isinstance(h, Tensor)
        return self.b(h)


def test_states_without_gradients_in_reentrant_checkpoints_are_named():
    net, x = Recomputed().train(), vectors().requires_grad_()
    with training(net, {"a": RateReduction()}) as terms:
        net(x)
        with pytest.raises(SiteError, match=r"a:out runs inside .* Pass use_reentrant=False"):
            terms.loss(label=LABEL)
    with (
        training(net, {"a": NestedDropout()}),
        pytest.raises(StateError, match="a:out is recomputed in the backward pass"),
    ):
        net(x)
    with training(net, {"b": RateReduction()}) as terms:
        net(x)
        terms.loss(label=LABEL).backward()
    assert net.a.weight.grad is not None
    assert bool(net.a.weight.grad.any())


def test_a_part_that_is_called_by_itself_is_no_forward_of_the_model():
    net = models.mlp(7).train()
    with training(net, {"0": RateReduction()}) as terms:
        net(vectors())
        terms.loss(label=LABEL)
        net[0](vectors())
        with pytest.raises(StateError, match=r"the Sequential that .* was not called itself"):
            terms.loss(label=LABEL)
    with training(net, {"0": NestedDropout(widths=(1,))}):  # needs to know nothing of a forward
        assert not bool(net[0](vectors())[:, 1:].any())


def test_a_model_with_open_hooks_is_not_pickled_but_copied():
    net = models.mlp(7)
    with training(net, {"0": RateReduction()}):
        for save in (lambda: torch.save(net, io.BytesIO()), lambda: pickle.dumps(net)):
            with pytest.raises(StateError, match=r"Save model\.state_dict\(\)"):
                save()
        again = copy.deepcopy(net)
    assert torch.equal(again(vectors()), net(vectors()))
    torch.save(net, io.BytesIO())


def test_several_forwards_are_views_only_with_a_word():
    net, x = models.mlp(7), vectors()
    with training(net, {"0": RateReduction()}) as terms:
        net(x)
        alone = terms.loss(label=LABEL)
        net(x + 3)
        net(x)
        with pytest.warns(
            SondeWarning, match="2 forward passes came before this loss, and 1 before"
        ):
            assert not torch.equal(terms.loss(label=LABEL), alone)
        net(x + 3)
        net(x)
        with pytest.raises(InputError, match="expected 3 forwards before the loss, got 2"):
            terms.loss(label=LABEL, views=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            terms.loss(label=LABEL, views=2)
        net(x + 3)
        terms.forget()
        net(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(terms.loss(label=LABEL, views=1), alone)
    with training(net, {"0": Contrast()}) as terms:
        for n in (2, 2, 3):
            for k in range(n):
                net(x + k)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                terms.loss()
            assert len(caught) == (n == 3)


def test_a_last_batch_that_is_too_small_is_left_out_and_counted():
    net = models.mlp(7)
    with training(net, {"0": RateReduction(), "2": nn.L1Loss()}) as terms:
        net(vectors(1))
        with pytest.raises(BatchError, match="expected 2 rows or more"):
            terms.loss(label=LABEL[:1], target=torch.zeros(1, 16))
        terms.forget()
        for labels in (LABEL, LABEL[:1], LABEL, LABEL[1:3]):
            x = vectors(len(labels))
            net(x)
            expected = net[2](net[1](net[0](x))).abs().mean()
            few = len(labels) < 3
            given = {"label": labels, "target": torch.zeros(len(labels), 16)}
            if labels is not LABEL and not terms.left_out:
                with pytest.warns(SondeWarning, match=r"RateReduction\(0:out\) is left out of"):
                    found = terms.loss(**given)
            else:
                found = terms.loss(**given)
            assert ("RateReduction(0:out)" in terms.figures) != few
            if few:
                assert float(found.detach()) == pytest.approx(float(expected.detach()))
                found.backward()
        assert terms.left_out == {"RateReduction(0:out)": 2}
        small = {"label": LABEL[:1], "target": torch.zeros(1, 16)}
        for _ in range(2):
            net(vectors(1))
            terms.loss(**small)
        net(vectors(1))
        with pytest.raises(BatchError):  # not the last batch alone: batch after batch
            terms.loss(**small)


class Wrong(Schedule):
    def weight(self, step: int) -> float:
        return float("nan")


@pytest.mark.truth("the weighted sum of the figures")
def test_weights_of_a_list_and_weights_that_are_no_numbers():
    net = models.mlp(7)
    losses: dict[Any, Any] = {"0": [RateReduction(), Contrast()], "2": RateReduction()}
    with training(net, losses, weight={"0": [0.5, 2.0], "2": 3.0}) as terms:
        net(vectors())
        found, (a, b, c) = terms.loss(label=LABEL), terms.figures.values()
    assert float(found.detach()) == pytest.approx(0.5 * a + 2 * b + 3 * c)
    for weight in ({"0": [0.5], "2": 1.0}, {"0": [0.5, float("nan")], "2": 1.0}, float("inf")):
        with (
            pytest.raises(InputError, match=r"a weight for each of 2|expected a finite weight"),
            training(net, losses, weight=weight),
        ):
            pass
    with training(net, {"0": RateReduction()}, weight=Wrong()) as terms:
        net(vectors())
        with pytest.raises(InputError, match=r"weight of the loss .* is nan at step 0"):
            terms.loss(label=LABEL)


@pytest.mark.truth("the loss called with the rows by hand")
def test_labels_are_classes_of_shape_n_or_targets_that_are_numbers():
    net, x = models.mlp(7), vectors()
    with training(net, {"0": RateReduction()}) as terms:
        net(x)
        with pytest.raises(InputError, match=r"labels of shape \(6,\) .* Pass label\[:, 0\]"):
            terms.loss(label=LABEL[:, None])
    target = torch.randn(6, 4)
    with training(net, {("0", "2"): CauchySchwarzBottleneck(beta=0.1)}) as terms:
        logits = net(x)
        found = terms.loss(label=target, logits=logits)
    first, second = net[0](x), net[2](net[1](net[0](x)))
    expected = CauchySchwarzBottleneck(beta=0.1)(first, second, logits, target)
    torch.testing.assert_close(found, expected)
