from dataclasses import dataclass, replace
from typing import ClassVar, final

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from run_case import Stopping
from sonde.core.errors import StateError
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.run.fitting.fit import fit
from sonde.run.passes.driver import Interrupted
from sonde.stats.training import Examples, Trainer, TrainingState, generator, minibatches, xavier
from sonde.stats.training_weights import Weights


def _loss(w, b):
    return (w.square().sum() - 1.0).square() + (w @ b).sin().sum()


@pytest.mark.truth("torch.optim.Adam and AdamW")
@pytest.mark.parametrize("decoupled", [False, True])
def test_steps_are_those_of_the_library(decoupled):
    start = torch.randn(3, 2, generator=generator(1)), torch.randn(2, generator=generator(2))
    weights = Weights.of(*(v.double() for v in start))
    live = weights.live().values
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimiser = kind(live, lr=0.05, weight_decay=0.1)
    for _ in range(7):
        optimiser.zero_grad()
        _loss(*live).backward()
        optimiser.step()
        mine = weights.live()
        gradients = torch.autograd.grad(_loss(*mine.values), mine.values)
        mine.adam(gradients[:1], 0.05, 0.1, decoupled)
        mine.adam(gradients[1:], 0.05, 0.1, decoupled, first=1)
        mine.steps += 1
        weights = mine.kept()
    assert weights.steps == 7
    for found, want in zip(weights.values, live, strict=True):
        torch.testing.assert_close(found, want.detach(), rtol=1e-12, atol=1e-12)


def test_a_step_leaves_the_weights_before_it_as_they_were():
    weights = Weights.of(torch.ones(3), buffers=(torch.zeros(2),))
    live = weights.live()
    live.adam([torch.ones(3)], 0.1)
    live.buffers[0].add_(1)
    assert equal(weights, Weights.of(torch.ones(3), buffers=(torch.zeros(2),)))


def test_random_numbers_follow_from_the_key_alone():
    a, b, c = (torch.randn(4, generator=generator(*k)) for k in ((1, "a"), (1, "a"), (1, "b")))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_minibatches_hold_every_row_once():
    parts = list(minibatches(23, 5, generator(0)))
    assert sorted(torch.cat(parts).tolist()) == list(range(23))
    assert all(5 <= len(p) < 10 for p in parts)
    assert [len(p) for p in minibatches(3, 5, generator(0))] == [3]


@pytest.mark.truth("variance 2 / (fan in + fan out)")
def test_weights_begin_with_the_variance_of_xavier():
    found = xavier(generator(0), 200, 100)
    assert float(found.var()) == pytest.approx(2 / 300, rel=0.03)


@dataclass(frozen=True, kw_only=True)
class FitState(TrainingState):
    n: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class Fit(Trainer[FitState]):
    """A module with batch norm that learns the metric column ``logits`` beside rows, by labels."""

    passes: int = 2
    batch: int = 16
    rate: float = 0.01
    seed: int = 0
    patience: int = 0
    buffer: int = 0
    reviews: ClassVar[bool] = True

    @property
    def net(self):
        torch.manual_seed(self.seed)
        return nn.Sequential(
            nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)
        )

    def start(self, dim: int) -> FitState:
        net = self.net
        buffers = [b.float() for b in net.buffers()]
        return FitState(
            weights=Weights.of(*(p.detach() for p in net.parameters()), buffers=buffers)
        )

    def survey(self, state, x, label):
        return replace(state, n=state.n + len(x))

    def examples(self, state, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"]):
        held = torch.arange(len(x)) % 4 == 0 if self.patience else None
        return state, Examples((x.float(), label), held)

    def loss(self, state, live, *batch, **_):
        net, (x, label) = self.net, batch
        names = [n for n, _ in net.named_parameters()], [n for n, _ in net.named_buffers()]
        given = dict(zip(names[0], live.values, strict=True))
        kept = dict(zip(names[1], live.buffers, strict=True))
        found = functional_call(net, {**given, **kept}, (x,))
        loss = cross_entropy(found, label, reduction="none")
        return loss.mean(), (loss,)

    def review(self, state, x, label):
        return replace(state, n=state.n + 1000 * len(x))


def _labelled(n=300):
    x = torch.randn(n, 3, generator=generator("rows"))
    return x, (x[:, 0] * x[:, 1] > 0).long()


@final
@dataclass(frozen=True)
class Fitting(Instrument):
    buffer: int = 0

    def reads(self):
        return {"trained": Fit(buffer=self.buffer)}

    def result(self, trained: FitState) -> Result:
        trained.require_trained("Fitting")
        return Result(value=trained.losses[0].average, n=trained.n)


@pytest.mark.truth("nn.Module, torch.optim.Adam, the same order of rows")
def test_a_module_with_buffers_is_trained_as_by_hand():
    (x, label), learner = _labelled(64), Fit(passes=3)
    state = learner.start(3)
    for _ in range(1 + 3 + 1):
        state = learner.close_pass(learner.update(state, x, label))
    net = learner.net
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for walk in range(3):
        for rows in minibatches(64, 16, generator("order", 0, 4 * walk)):
            optimiser.zero_grad()
            cross_entropy(net(x[rows]), label[rows]).backward()
            optimiser.step()
    for found, want in zip(state.weights.values, net.parameters(), strict=True):
        torch.testing.assert_close(found, want.detach(), rtol=1e-4, atol=1e-6)
    for found, want in zip(state.weights.buffers, net.buffers(), strict=True):
        torch.testing.assert_close(found, want.float(), rtol=1e-4, atol=1e-6)
    assert (state.weights.steps, state.losses[0].n, state.n) == (12, 64, 64 + 64_000)


@pytest.mark.slow
@pytest.mark.parametrize("buffer", [0, 200])
def test_a_killed_training_goes_on_with_the_same_bits(tmp_path, buffer):
    x, label = _labelled(320)
    stream, instrument = Stream.of(x, label=label), Fitting(buffer)
    how = {"unit_size": 64, "progress": False}
    with pytest.raises(Interrupted):
        fit(instrument, Stopping(stream, after=8), directory=tmp_path / "a.run", **how)
    again = fit(instrument, stream, directory=tmp_path / "a.run", **how)
    whole = fit(instrument, stream, **how)
    assert again.save(
        tmp_path / "a.sonde",
    ) == whole.save(tmp_path / "b.sonde")


def test_with_a_buffer_every_example_is_trained_on_once_in_whole_batches():
    learner, (x, label) = Fit(passes=1, batch=16, buffer=48), _labelled(301)
    state = learner.close_pass(learner.start(3))
    seen: list[int] = []
    for rows in torch.arange(301).split(21):
        state = learner.update(state, x[rows], label[rows])
        seen.append(len(state.waiting[0]))
    assert (max(seen), state.weights.steps) == (46, (301 - seen[-1]) // 16)
    state = learner.close_pass(state)
    assert (state.losses[0].n, state.weights.steps) == (301, 301 // 16)


def test_a_training_that_diverges_names_the_step_and_keeps_what_was_before():
    learner, (x, label) = Fit(rate=0.01, passes=9), _labelled(64)
    state = learner.close_pass(learner.start(3))
    good = learner.update(state, x, label)
    bad = learner.update(good, x * torch.tensor([1.0, torch.inf, 1.0]), label)
    assert bad.diverged == good.weights.steps == 4
    assert equal(bad.weights, good.weights)
    done = learner.close_pass(learner.close_pass(learner.update(bad, x, label)))
    assert learner.is_trained(done)
    with pytest.raises(StateError, match=r"Fit: the training diverged at step 4"):
        done.require_trained("Fit")


def test_patience_keeps_the_best_weights():
    learner, (x, label) = Fit(passes=500, patience=2, rate=0.5, batch=64), _labelled(64)
    state, losses = learner.close_pass(learner.start(3)), []
    while state.stage == 1:
        state = learner.update(state, x, label)
        losses.append((state.held.average, state.weights))
        state = learner.close_pass(state)
    best = min(range(len(losses)), key=lambda i: losses[i][0])
    assert len(losses) == best + 3 < 500
    assert state.best_loss == losses[best][0]
    assert equal(state.best, losses[best][1])
