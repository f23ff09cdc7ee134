"""Whose a row is in a batch of vLLM: the walk of a worker, without vLLM."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sonde.engines.vllm_worker import Recording, StateWorker, state_of

DIM = 3


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
        for block in self.blocks:
            block(x + scheduled.noise)
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
    worker.sonde_watch(["layers.0"])
    step(worker.model_runner, a=(0, 2))
    assert worker.sonde_requests() == ["a"]
    assert torch.equal(worker.sonde_take("a", 2)["layers.0"], value("a", 0, 2))
    step(worker.model_runner, a=(0, 2))
    worker.sonde_drop()
    assert not worker.sonde_requests()
