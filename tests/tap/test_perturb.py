"""The column ``perturbed_logits``: a closed form, and a model that is handed back as it was."""

import pytest
import torch
from torch import nn

from models import CNN, gpt2, mlp
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.run.reading.read import read
from sonde.store import Store, write_store
from sonde.tap import live_stream
from sonde.tap.model.perturb import perturbed_logits
from tap_inputs import Arrays, images, texts

RNG = torch.Generator().manual_seed(0)
X = torch.randn(6, 5, generator=RNG, dtype=torch.float64)


def linear(n_in=5, n_out=4):
    torch.manual_seed(1)
    return nn.Linear(n_in, n_out).double()


def closed_form(layer, x, how):
    """``x - eps / std * sign(W^T (p_T - onehot_c) / T)`` and the logits there."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    logits = x @ weight.T + bias
    onehot = nn.functional.one_hot(logits.argmax(1), len(bias)).double()
    p = torch.softmax(logits / how.temperature, dim=1)
    gradient = (p - onehot) @ weight / how.temperature
    std = torch.tensor(how.std, dtype=torch.float64)
    return (x - how.eps * gradient.sign() / std) @ weight.T + bias


@pytest.mark.parametrize(
    "how",
    [
        Perturbation(),
        Perturbation(temperature=1.0, eps=0.3),
        Perturbation(2.0, -0.1, 0.25),
        Perturbation(1000.0, 0.2, (0.1, 0.2, 0.3, 0.4, 0.5)),
    ],
)
@pytest.mark.truth("the gradient of a linear classifier, W^T (p - onehot) / T")
def test_a_linear_classifier_in_closed_form(how):
    layer = linear()
    found = perturbed_logits(layer, (X,), {}, how)
    torch.testing.assert_close(found, closed_form(layer, X, how), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, layer(X))


@pytest.mark.truth("autograd on the mean loss of one image at a time, with the division by T")
def test_channels_of_images():
    module, x = CNN(channels=3).eval(), torch.rand(4, 3, 8, 8, generator=RNG)
    std = (0.2, 0.5, 0.1)
    found = perturbed_logits(module, (x,), {}, Perturbation(10.0, 0.01, std))
    for i in range(4):
        one = x[i : i + 1].clone().requires_grad_(True)
        scaled = module(one) / 10.0
        (gradient,) = torch.autograd.grad(
            nn.functional.cross_entropy(scaled, scaled.argmax(1)), one
        )
        step = 0.01 / torch.tensor(std)[:, None, None]
        moved = one.detach() - step * gradient.sign()
        torch.testing.assert_close(found[i : i + 1], module(moved).detach(), rtol=1e-4, atol=1e-5)


def test_the_step_makes_the_classifier_surer():
    module = mlp()
    x = torch.randn(50, 8, generator=RNG)
    with torch.no_grad():
        before, answer = module(x).softmax(1).max(1, keepdim=True)
    for eps in (0.01, -0.01):
        after = perturbed_logits(module, (x,), {}, Perturbation(1.0, eps)).softmax(1)
        assert bool(((after.gather(1, answer) - before) * eps > 0).all())


def test_the_model_and_the_inputs_are_as_they_were():
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    module.train()
    module[2].eval()
    module[0].bias.requires_grad_(False)
    x = torch.randn(4, 5, generator=RNG)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    flags = [p.requires_grad for p in module.parameters()]
    kept = x.clone()
    stream = live_stream(module, Arrays(x), "0", perturb=Perturbation())
    one, again = next(iter(stream)), next(iter(stream))
    assert torch.equal(one.extra["perturbed_logits"], again.extra["perturbed_logits"])
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(x, kept)
    assert not x.requires_grad


def test_flags_are_restored_after_an_error():
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            raise ValueError("no")

    module = Breaks().train()
    with pytest.raises(ValueError, match="no"):
        perturbed_logits(module, (torch.zeros(2, 5),), {}, Perturbation())
    assert module.training
    assert module.fc.weight.requires_grad


def test_the_stream_brings_the_column_and_names_its_parameters(tmp_path):
    module, how = CNN(channels=3).eval(), Perturbation(10.0, 0.01, (0.2, 0.5, 0.1))
    inputs = images(8, n=5, keyword="x")
    plain = live_stream(Model(module), inputs, "conv1")
    stream = live_stream(Model(module), inputs, "conv1", perturb=how)
    assert stream.identity() != plain.identity()
    assert Perturbation.from_json(stream.identity()["perturb"]) == how
    expected = perturbed_logits(module, (), {"x": inputs.x}, how)
    found = torch.cat([b.column("perturbed_logits", "conv1:out") for b in stream])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    write_store(stream, tmp_path / "rows")
    stored = Store(tmp_path / "rows")
    again = torch.cat([b.column("perturbed_logits", "conv1:out") for b in stored])
    assert torch.equal(again, found)
    assert stored.identity()["perturb"] == how.json()


def test_a_store_is_read_with_its_own_step_alone(tmp_path):
    how = Perturbation(std=(0.5, 0.25, 0.5, 1.0, 2.0))
    write_store(read(linear(), list(X), perturb=how, logits=True), tmp_path / "rows")
    for same in (None, how, how.json()):
        assert len(read(tmp_path / "rows", perturb=same)) == len(X)
    for other in (Perturbation(), Perturbation().json()):
        with pytest.raises(InputError, match=r"read with perturb=.*'std': 1.0} is needed"):
            read(tmp_path / "rows", perturb=other)


# refusals ----------------------------------------------------------------------------------------


def test_token_ids_are_refused_before_anything_runs():
    stream = live_stream(Model(gpt2(), task="causal"), texts(), perturb=Perturbation())
    with pytest.raises(InputError, match=r"token ids cannot be changed.*MSP"):
        _ = stream.schema


def test_models_without_a_classifiers_logits_are_refused():
    with pytest.raises(InputError, match=r"expected a classifier's logits"):
        perturbed_logits(nn.Conv2d(3, 2, 1), (torch.zeros(2, 3, 4, 4),), {}, Perturbation())


def test_inputs_without_influence_are_refused():
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.zeros(1, 3))

        def forward(self, x):
            return (self.x + 0).expand(len(x), 3).clone().requires_grad_(True)

    with pytest.raises(InputError, match="do not depend on the inputs"):
        perturbed_logits(Blind(), (torch.zeros(2, 5),), {}, Perturbation())


def test_std_of_other_channels_is_refused():
    with pytest.raises(InputError, match=r"each of 5 channels .* got 2"):
        perturbed_logits(linear(), (X,), {}, Perturbation(std=(1.0, 2.0)))


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"eps": float("nan")}, {"std": 0.0}, {"std": (1.0, -1.0)}]
)
def test_parameters_are_checked(wrong):
    with pytest.raises(InputError, match="Perturbation: expected"):
        Perturbation(**wrong)


def test_feature_arrays_are_refused(tmp_path):
    with pytest.raises(InputError, match="no gradient"):
        read("-", tmp_path / "x.npz", perturb=Perturbation())


def test_parameters_that_are_not_named_are_the_defaults(tmp_path):
    assert Perturbation.from_json({}) == Perturbation()
    assert Perturbation.from_json({"eps": 0.1, "std": [1, 2]}) == Perturbation(1000.0, 0.1, (1, 2))
    stream = read(CNN(channels=3).eval(), list(images(3, n=2, keyword="x").x), perturb={"eps": 0.1})
    assert stream.identity()["perturb"] == Perturbation(eps=0.1).json()
    with pytest.raises(InputError, match=r"among temperature, eps, std, got 'epsilon'"):
        Perturbation.from_json({"epsilon": 0.1})
    with pytest.raises(InputError, match=r"expected numbers, got \{'eps': 'much'\}"):
        Perturbation.from_json({"eps": "much"})
    with pytest.raises(InputError, match="positive temperature"):
        Perturbation.from_json({"temperature": -1})


@pytest.mark.truth("the same classifier as a function of one row that holds both inputs")
def test_several_inputs_are_moved_together_and_masks_stay():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.both = nn.Bilinear(2, 3, 4).double()

        def forward(self, left, right, row_mask=None):
            found = self.both(left, right).tanh() + left.sum(1, keepdim=True) * right[:, :1]
            return found if row_mask is None else found * row_mask

    class One(nn.Module):
        def __init__(self, two):
            super().__init__()
            self.two = two

        def forward(self, x):
            return self.two(x[:, :2], x[:, 2:])

    net, how = Two(), Perturbation(3.0, 0.2, 0.7)
    wanted = perturbed_logits(One(net), (X,), {}, how)
    mask = {"row_mask": torch.ones(6, 1).double()}
    for args, kwargs in (((X[:, :2], X[:, 2:]), {}), ((X[:, :2],), {"right": X[:, 2:], **mask})):
        torch.testing.assert_close(perturbed_logits(net, args, kwargs, how), wanted)
    with pytest.raises(InputError, match="one std for all of left, right"):
        perturbed_logits(net, (X[:, :2], X[:, 2:]), {}, Perturbation(3.0, 0.2, (0.1, 0.2)))
