"""ODIN: its closed form on a linear classifier, and the way from a model to calibrated scores."""

import pytest
import torch
from torch import nn

import sonde
from models import gpt2
from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.detect import MSP, ODIN
from sonde.tap import live_stream
from tap_inputs import Arrays, texts

RNG = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=RNG, dtype=torch.float64)


def linear():
    torch.manual_seed(1)
    return nn.Linear(5, 4).double()


@pytest.mark.parametrize(
    "how", [ODIN(), ODIN(1.0, 0.3), ODIN(10.0, 0.2, (0.1, 0.2, 0.3, 0.4, 1.0))]
)
@pytest.mark.truth("the gradient of a linear classifier, W^T (p - onehot) / T")
def test_a_linear_classifier_in_closed_form(how):
    layer = linear()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    logits = X @ weight.T + bias
    p = torch.softmax(logits / how.temperature, dim=1)
    gradient = (p - nn.functional.one_hot(logits.argmax(1), 4)) @ weight / how.temperature
    moved = X - how.eps / torch.tensor(how.std) * gradient.sign()
    expected = -torch.softmax((moved @ weight.T + bias) / how.temperature, 1).max(1).values
    stream = live_stream(layer, Arrays(X), "", **{"perturb": how.perturbation})
    fitted = sonde.fit(how, stream, calibrate=0, progress=False)
    table = sonde.score(fitted, stream, progress=False)
    assert table.column("score").to_pylist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.truth("the largest softmax probability, by torch")
def test_without_a_step_it_is_the_softmax():
    logits = torch.randn(30, 6, generator=RNG, dtype=torch.float64)
    scorer = ODIN(temperature=3.0).fit(logits, perturbed_logits=logits)
    expected = -torch.softmax(logits / 3.0, 1).max(1).values
    torch.testing.assert_close(scorer.score(logits), expected)
    torch.testing.assert_close(scorer.score(logits), MSP(3.0).scores(logits))
    assert float(scorer) == pytest.approx(float(expected.mean()))
    assert scorer.range == (-1.0, 0.0)  # minus a probability


def trained():
    """A net of two blobs, far from sure anywhere else."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    x, y = blobs(256, 0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def blobs(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return 4.0 * y[:, None] - 2.0 + torch.randn(n, 2, generator=rng), y


def test_rows_between_the_classes_score_high(tmp_path):
    net, how = trained(), ODIN(temperature=100.0, eps=0.1)
    between = 4.0 * torch.tensor([[1.0, -1.0]]) * torch.linspace(-1, 1, 40)[:, None]
    streams = [
        sonde.read(net, list(x), sites="1", **how.reading())
        for x in (blobs(300, 1)[0], blobs(80, 2)[0], between)
    ]
    fitted = sonde.fit(how, streams[0], progress=False)
    fitted.save(tmp_path / "probe.sonde")
    loaded = sonde.Fitted.load(tmp_path / "probe.sonde")
    usual = sonde.score(loaded, streams[1], progress=False).column("score").to_pylist()
    table = sonde.score(loaded, net, list(between), progress=False)
    odd = table.column("score").to_pylist()
    assert sorted(odd)[20] > sorted(usual)[72]
    assert sorted(table.column("p").to_pylist())[20] < 0.1
    again = sonde.score(loaded, streams[2], progress=False).column("score").to_pylist()
    assert odd == pytest.approx(again)


# refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [{}, ODIN(eps=0.5).reading()])
def test_a_stream_that_was_read_otherwise_is_refused(read):
    stream = sonde.read(linear().float(), list(X.float()), sites="", **read)
    with pytest.raises(InputError, match=r"ODIN expects a stream that was read with perturb="):
        sonde.fit(ODIN(), stream, progress=False)


def test_a_bundle_refuses_another_step():
    layer = linear()
    stream = live_stream(layer, Arrays(X), "", perturb=ODIN().perturbation)
    fitted = sonde.fit(ODIN(), stream, calibrate=0, progress=False)
    other = live_stream(layer, Arrays(X), "", perturb=ODIN(eps=0.1).perturbation)
    with pytest.raises(sonde.StateError, match="another reading: perturb"):
        sonde.score(fitted, other, progress=False)


def test_token_ids_are_refused():
    stream = live_stream(Model(gpt2(), task="causal"), texts(), perturb=ODIN().perturbation)
    with pytest.raises(InputError, match=r"token ids cannot be changed"):
        sonde.fit(ODIN(), stream, progress=False)


def test_arrays_need_the_column():
    with pytest.raises(InputError, match="perturbed_logits"):
        ODIN().fit(X)


def test_logits_of_other_classes_are_refused():
    scorer = ODIN().fit(X, perturbed_logits=X)
    with pytest.raises(ShapeError, match=r"ODIN.score: expected classes=5"):
        scorer.score(torch.zeros(2, 3))


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"eps": float("inf")}, {"std": (0.0,)}])
def test_parameters_are_checked(wrong):
    with pytest.raises(InputError, match="Perturbation: expected"):
        ODIN(**wrong)
