"""Rows that are not a function of their example are told before a run, by two tiny forwards."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sonde
from models import bert, lstm, mlp
from sonde.cli.main import main
from sonde.core.errors import SondeWarning
from sonde.core.inputs import Model
from sonde.detect import Mahalanobis
from sonde.tap import live_stream
from tap_inputs import Arrays, texts

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


class Through(nn.Module):
    """A net with something in its middle."""

    def __init__(self, middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Linear(8, 16), nn.Linear(16, 4), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def batch_normed(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def by_size(x: Tensor) -> Tensor:
    return x[x.sum(1).argsort()]


MIDDLES = {
    "turned": (lambda x: x.flip(0), "beside others"),
    "rolled": (lambda x: x.roll(1, 0), "beside others"),
    "sorted": (by_size, "beside others"),
    "normed": (batch_normed, "beside others"),
    "dropout": (lambda x: F.dropout(x, 0.1), "draws random numbers"),
    "noise": (lambda x: x + 0.01 * torch.randn(()), "draws random numbers"),
}


def run(kind: str, module: nn.Module, check: bool) -> None:
    stream = sonde.read(module, list(X), "last", batch_size=4, check=check)
    if kind == "read":
        list(stream)
    elif kind == "fit":
        sonde.fit(Mahalanobis(), stream, progress=False)
    else:
        plain = sonde.read(module, list(X), "last", batch_size=4, check=False)
        fitted = sonde.fit(Mahalanobis(), plain, progress=False)
        sonde.score(fitted, module, list(X), check=check, batch_size=4, progress=False)


@pytest.mark.parametrize("kind", ["read", "fit", "score"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_a_fault_is_told_once_with_its_cause(middle, kind):
    change, cause = MIDDLES[middle]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(kind, Through(change).eval(), check=True)
    (message,) = [str(w.message) for w in told if w.category is SondeWarning]
    assert cause in message
    assert "last:out" in message


def turned() -> nn.Module:
    return Through(MIDDLES["turned"][0]).eval()


def test_the_commands_say_it_on_one_line_unless_told_not_to(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=X.numpy())
    words = ["tap.test_soundness:turned", str(tmp_path / "x.npz"), "--sites", "last"]
    for command in (["read", *words], ["fit", "mahalanobis", *words]):
        for flag, n in (([], 1), (["--no-check"], 0)):
            assert main([*command, "-o", str(tmp_path / f"{command[0]}{n}"), *flag]) == 0
            assert capsys.readouterr().err.count("beside others") == n


def test_no_check_says_nothing():
    run("fit", Through(batch_normed).eval(), check=False)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (mlp(), Arrays(X)),
        (mlp().bfloat16(), Arrays(X)),
        (lstm(), texts([5, 3, 9, 3, 7, 4, 4, 6])),
        (bert(), texts([5, 3, 9, 3, 7, 4, 4, 6])),
        (mlp(), Arrays(X[:1])),
    ],
)
def test_sound_models_run_twice_and_nothing_is_said(module, inputs):
    stream = live_stream(Model(module, task="encoder"), inputs, check=True)
    _, ran, state = stream.schema, [], torch.get_rng_state()
    handle = module.register_forward_hook(lambda m, a, o: ran.append(1))
    assert stream.checked
    handle.remove()
    assert len(ran) <= 2
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_for_one_batch_size_is_read_unchecked():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) in (1, 2, 3, 4)
            return self.fc(x)

    assert len(list(live_stream(Model(Fixed()), Arrays(X), check=True))) == 10
