"""A tap or an edit leaves the model bit for bit as it was, wherever something fails."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import cnn, gpt2
from sonde.core.edit import Scale
from sonde.core.inputs import Model
from sonde.tap import LiveStream, editing, live_stream
from tap_inputs import Texts, images
from tap_snapshot import assert_unchanged, snapshot

HEALTH: list[HealthCheck] = list(HealthCheck)  # pyright: ignore[reportAssignmentType]


class Planted(Exception):
    """The failure that a test plants."""


@cache
def stream_of(name: str, objective: str | None, logits: bool) -> LiveStream:
    if name == "cnn":
        inputs = images(8, n=4, channels=1, keyword=None)
        return live_stream(Model(cnn()), inputs, objective=objective, logits=logits)
    texts = Texts([[1, 5, 6], [1, 7], [1, 8, 9, 10]], batch_size=1)
    model = gpt2()
    return live_stream(Model(model, task="causal"), texts, objective=objective, logits=logits)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=HEALTH)
@given(
    name=st.sampled_from(["cnn", "gpt2"]),
    objective=st.sampled_from([None, "kl_uniform"]),
    logits=st.booleans(),
    place=st.sampled_from(["nowhere", "hook", "consumer", "data", "edit"]),
    at=st.integers(0, 5),
    training=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_the_model_is_as_it_was(name, objective, logits, place, at, training):
    stream = stream_of(name, objective, logits)
    _ = stream.schema
    module = stream.model.module
    for part, mode in zip(module.children(), training, strict=False):
        part.train(mode)
    module.training = training[0]
    before = snapshot(module)
    try:
        _read(stream, module, place, at)
    except Planted:
        assert_without_planted_hook(module)
    assert_unchanged(before, module)


def _read(stream: LiveStream, module: torch.nn.Module, place: str, at: int) -> None:
    parts = list(module.modules())
    victim, handle = parts[at % len(parts)], None
    if place == "hook":
        handle = victim.register_forward_hook(_raise)
    edit = editing(module, Scale(2.0), stream.schema[0].site) if place == "edit" else None
    try:
        if edit is not None:
            edit.__enter__()
        for n, _ in enumerate(stream):
            if place in ("consumer", "data") and n == at % 2:
                raise Planted
    finally:
        if edit is not None:
            edit.__exit__(None, None, None)
        if handle is not None:
            handle.remove()


def _raise(module, args, output):
    raise Planted


def assert_without_planted_hook(module: torch.nn.Module) -> None:
    assert all(not m._forward_hooks for m in module.modules())
