"""What a model raises: told as a fault of the inputs only where it is likely one."""

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import ForwardError, InputError


class Faulty(nn.Module):
    """Raises ``error`` from the third forward on, or at once."""

    def __init__(self, error: Exception, at: int = 0) -> None:
        super().__init__()
        self.block, self.error, self.at, self.n = nn.Linear(4, 3), error, at, 0

    def forward(self, x):
        self.n += 1
        if self.n > self.at:
            raise self.error
        return self.block(x)


def read(net):
    return list(sonde.read(net.eval(), list(torch.randn(20, 4)), sites=["block"], batch_size=2))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x5 and 4x3)"),
        ValueError("not enough values to unpack (expected 4, got 3)"),
        IndexError("index out of range in self"),
        TypeError("forward() got an unexpected keyword argument 'pixel_values'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_refuses_the_first_inputs_is_told_with_their_shape(error):
    with pytest.raises(ForwardError, match=r"failed on inputs of shape x \(\d+, 4\)") as caught:
        read(Faulty(error))
    assert caught.value.__cause__ is error
    assert "--debug" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("helper() missing 1 required positional argument: 'scale'"),
        NotImplementedError("no such shape"),
        RuntimeError("CUDA error: invalid argument of this size"),
        KeyError("shape"),
        ValueError("too many values to unpack (expected 2)"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}",
)
def test_other_errors_of_a_model_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught:
        read(Faulty(error, at=6))
    assert caught.value is error


def test_errors_of_an_objective_are_not_told_as_bad_inputs():
    def objective(*_):
        raise ValueError("no such size")

    with pytest.raises((ValueError, InputError)) as caught:
        list(sonde.read(nn.Linear(4, 3), list(torch.randn(20, 4)), sites=[""], objective=objective))
    assert "inputs of shape" not in str(caught.value)


def test_the_command_line_says_how_to_see_where_it_failed(tmp_path, monkeypatch):
    from cli_case import run_words

    (tmp_path / "narrow_net.py").write_text(NARROW)
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 5), "f4"))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("read", "narrow_net:make", tmp_path / "wide.npz", "-o", tmp_path / "acts")
    assert run_words(*words).error().endswith(" (--debug shows where it failed)")


NARROW = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
"""
