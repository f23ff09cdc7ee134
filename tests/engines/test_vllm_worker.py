"""Whose a row is in a batch of vLLM: the walk of a worker, without vLLM."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sonde.core.edit import Add, Scale
from sonde.core.errors import InputError
from sonde.edit import Function
from sonde.engines._orders import Orders, as_states
from sonde.engines.vllm_worker import Recording, StateWorker, state_of
from sonde.tap import TokenIds, editing

DIM = 3
PROMPT = 4


class Block(nn.Module):
    """Gives change and stream apart, as most decoders of vLLM do."""

    def forward(self, x):
        return x * 0.25, x * 0.75


class Runner:
    """What the walk reads of vLLM's runner: one forward pass over all scheduled tokens."""

    def __init__(self):
        self.blocks = nn.ModuleList([Block(), Block()])
        self.model = nn.ModuleDict({"layers": self.blocks})
        self.input_batch = SimpleNamespace(req_ids=[], num_computed_tokens_cpu=np.zeros(0, int))
        self.ids = torch.zeros(0)

    def get_model(self):
        return self.model

    def execute_model(self, scheduled):
        x = torch.cat(
            [
                value(name, position, scheduled.num_scheduled_tokens[name])
                for name, position in scheduled.running
                if scheduled.num_scheduled_tokens.get(name)
            ]
        )
        self.input_batch.req_ids = [name for name, _ in scheduled.running]
        self.input_batch.num_computed_tokens_cpu = np.array([p for _, p in scheduled.running])
        self.input_batch.num_prompt_tokens = np.full(len(scheduled.running), PROMPT)
        for hook in self.model._forward_pre_hooks.values():
            hook(self.model, (), {"input_ids": self.ids})
        self.given = []
        for block in self.blocks:
            self.given.append(block(x + scheduled.noise))
        return len(x)


def value(name, position, size):
    """The true state of a request at some positions."""
    at = torch.arange(position, position + size, dtype=torch.float32)[:, None]
    return at + 100 * ord(name) + torch.arange(DIM) / 8


def step(runner, noise=0.0, **sizes):
    """Schedule some tokens of each request: ``a=(position, size)``."""
    return runner.execute_model(
        SimpleNamespace(
            running=[(name, position) for name, (position, _) in sizes.items()],
            num_scheduled_tokens={name: size for name, (_, size) in sizes.items()},
            noise=noise,
        )
    )


@pytest.fixture
def watched():
    runner = Runner()
    recording = Recording(runner)
    recording.watch(["layers.1"])
    return runner, recording


def test_rows_go_to_their_requests_in_pieces_of_any_size(watched):
    runner, recording = watched
    step(runner, a=(0, 4), b=(0, 2))  # a prompt in pieces, another one whole
    step(runner, b=(2, 1), a=(4, 3), c=(0, 0))  # another order; c waits
    step(runner, c=(0, 5), b=(3, 1))
    for name, length in {"a": 7, "b": 4, "c": 5}.items():
        assert torch.equal(recording.take(name, length)["layers.1"], value(name, 0, length))
    assert not recording.states


def test_a_preempted_request_has_each_row_once_and_the_last_state_of_it(watched):
    runner, recording = watched
    step(runner, noise=1.0, a=(0, 4))
    step(runner, a=(0, 3), b=(0, 2))  # computed anew after b took its place
    step(runner, a=(3, 2))
    assert torch.equal(recording.take("a", 5)["layers.1"], value("a", 0, 5))


def test_a_request_keeps_no_rows_of_others(watched):
    runner, recording = watched
    step(runner, a=(0, 4), b=(0, 400))
    assert recording.states["a"][0][1].untyped_storage().nbytes() == 4 * DIM * 4


def test_rows_that_were_never_computed_are_missed(watched):
    runner, recording = watched
    step(runner, a=(128, 3))  # 128 positions came from the cache of prefixes
    with pytest.raises(RuntimeError, match="128 of 131 positions of a have no states"):
        recording.take("a", 131)


def test_what_runs_outside_of_a_schedule_leaves_nothing(watched):
    runner, recording = watched
    runner.blocks[1](torch.ones(4, DIM))  # a warm-up
    recording.close()
    step(runner, a=(0, 4))
    assert not recording.states


def test_the_state_of_a_block_is_the_sum_of_change_and_stream():
    x = torch.randn(4, DIM)
    assert torch.equal(state_of(Block()(x)), x)
    same = state_of(x)
    assert torch.equal(same, x)
    assert same.data_ptr() != x.data_ptr()  # vLLM writes into its buffers again


def test_a_worker_answers_calls(watched):
    worker = StateWorker()
    worker.model_runner = watched[0]
    assert worker.sonde_modules()["layers.1"] == "Block"
    worker.sonde_drop()  # before anything is watched
    worker.sonde_watch(["layers.0"], [])
    step(worker.model_runner, a=(0, 2), b=(0, 3))
    first, second = worker.sonde_take({"b": 3, "a": 2}, os.getpid())
    assert torch.equal(first["layers.0"], value("b", 0, 3))
    assert torch.equal(second["layers.0"], value("a", 0, 2))
    step(worker.model_runner, a=(0, 2), b=(0, 3))
    (packed,) = worker.sonde_take({"a": 2}, 0)  # for another process
    assert torch.equal(as_states([packed])[0]["layers.0"], value("a", 0, 2))
    step(worker.model_runner, a=(0, 2))
    worker.sonde_drop(["a"])
    assert [len(found) for found in worker.sonde_take({"a": 2, "b": 3}, os.getpid())] == [0, 1]


def test_vllm_adds_letters_to_the_names_of_requests(watched):
    _, recording = watched
    for name in ("1-0a1b2c3d", "0_1-0a1b2c3d", "11-0a1b2c3d", "1-ffffffff"):
        recording.states[name] = [(0, torch.full((1, 1, DIM), float(len(name))))]
    assert recording.take("0_1", 1)["layers.1"][0, 0] == 12
    assert recording.take("1", 1)
    assert [*recording.states] == ["1-0a1b2c3d", "11-0a1b2c3d"]  # the last one of that name


@pytest.mark.truth("the rows of each position, by hand")
@pytest.mark.parametrize(
    ("where", "changed"),
    [
        ("all", {"a": range(6), "b": range(3)}),
        ("prompt", {"a": range(4), "b": range(3)}),
        ("generated", {"a": (4, 5), "b": ()}),
        ("last", {"a": (3,), "b": ()}),
        ([0, 5], {"a": (0, 5), "b": (0,)}),
        (TokenIds((7,)), {"a": (1,), "b": (2,)}),
        (["generated", 0], {"a": (0, 4, 5), "b": (0,)}),
    ],
)
def test_an_edit_changes_the_tokens_that_are_named(where, changed):
    model = nn.Sequential(*(nn.Identity() for _ in range(2)))
    blocks = {f"layers.{i}": model[i] for i in range(2)}
    orders, runner = Orders(), Runner()
    edit, direction = Scale(2.0), torch.tensor([1.0, 0.0, -2.0])
    with editing(model, edit, "0", where), editing(model, Add(direction), "0", where):
        runner.ids = torch.tensor([1, 7, 2, 3, 4, 5, 6, 8, 7])
        ((_, given),) = orders.update(model, {path.split(".")[1]: b for path, b in blocks.items()})
        assert not orders.update(model, {"0": model[0], "1": model[1]})  # nothing new
        worker = StateWorker()
        worker.model_runner = runner
        changes = [message | {"path": "layers.0"} for message in given[1]]
        worker.sonde_watch(["layers.0"], changes)
        step(runner, a=(0, 6), b=(0, 3))
    before = torch.cat([value("a", 0, 6), value("b", 0, 3)])
    after = before.clone()
    for row in [*changed["a"], *(6 + i for i in changed["b"])]:
        after[row] = 2 * before[row] + direction
    assert torch.equal(state_of(runner.given[0]), after)
    taken = torch.cat(
        [found["layers.0"] for found in worker.sonde_take({"a": 6, "b": 3}, os.getpid())]
    )
    assert torch.equal(taken, before)  # the module's own hooks edit them
    worker.sonde_watch([], [])
    step(runner, a=(0, 6), b=(0, 3))
    assert torch.equal(state_of(runner.given[0]), before)
    if where == "all":
        assert orders.update(model, blocks) == [("sonde_watch", ([], []))]


def test_edits_that_vllm_cannot_apply_are_named():
    model = nn.Sequential(*(nn.Linear(DIM, DIM) for _ in range(3)))
    blocks = {"0": model[0], "1": model[1]}
    for opened, expected in (
        (editing(model, Function(torch.relu), "0"), "got Function, which is not affine"),
        (editing(model, Scale(2.0), "2"), "edits behind blocks, got Scale at 2:out. Name 0 or"),
        (editing(model, Scale(2.0), "1:in"), "edits behind blocks, got Scale at 1:in"),
        (
            editing(model, Scale(2.0), "1", others={"clean": {"1:out": torch.ones(1, DIM)}}),
            "got Scale, which depends on a gate or on other runs",
        ),
    ):
        with opened, pytest.raises(InputError, match=expected):
            Orders().update(model, blocks)
    with editing(model, Scale(2.0, strength=0.0), "0"):
        ((_, (_, changes)),) = Orders().update(model, blocks)
    assert changes == []
