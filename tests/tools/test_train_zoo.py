"""A training of a shipped model that is stopped between checkpoints ends in the same weights."""

from pathlib import Path

import pytest
import torch

from tools import train_zoo

pytestmark = pytest.mark.slow


class Stopped(BaseException):
    """The machine is gone."""


def stop_at(monkeypatch, name: str, number: int) -> None:
    """Stop the training when a function is called for the n-th time."""
    real, calls = getattr(train_zoo, name), []

    def counted(*arguments):
        calls.append(name)
        if len(calls) == number:
            raise Stopped
        return real(*arguments)

    monkeypatch.setattr(train_zoo, name, counted)


def weights(folder: Path, monkeypatch, name: str, train, stops: tuple[str, int] | None) -> dict:
    """Train in a folder, stopped once and gone on with if asked to; return the last checkpoint."""
    monkeypatch.setattr(train_zoo, "WORK", folder)
    if stops:
        with monkeypatch.context() as patch:
            stop_at(patch, *stops)
            with pytest.raises(Stopped):
                train()
        assert torch.load(folder / f"{name}.pt", weights_only=True)["step"] == 2
    train()
    return torch.load(folder / f"{name}.pt", weights_only=True)


def assert_same(a, b) -> None:
    """Compare nested states bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


@pytest.mark.truth("the undisturbed training")
def test_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(train_zoo, "DIGITS_KEPT", 2)

    def train():
        train_zoo.train_digits(4, seed=3)

    whole = weights(tmp_path / "whole", monkeypatch, "digits", train, None)
    resumed = weights(tmp_path / "cut", monkeypatch, "digits", train, ("augmented", 4))
    assert len(whole["curve"]) == 2
    assert_same(whole, resumed)


@pytest.mark.truth("the undisturbed training")
def test_stdlib(tmp_path, monkeypatch):
    files = [p for p in train_zoo.stdlib_files() if 600 < p.stat().st_size < 3000]
    held = [p for p in files if train_zoo.is_test(p)]
    some = [*[p for p in files if p not in held][:4], held[0]]
    monkeypatch.setattr(train_zoo, "stdlib_files", lambda: some)
    monkeypatch.setattr(train_zoo, "STDLIB_KEPT", 2)

    def train():
        train_zoo.train_stdlib(4, 2, seed=3)

    whole = weights(tmp_path / "whole", monkeypatch, "stdlib", train, None)
    resumed = weights(tmp_path / "cut", monkeypatch, "stdlib", train, ("one_step", 4))
    assert len(whole["curve"]) == 2
    assert_same(whole, resumed)
