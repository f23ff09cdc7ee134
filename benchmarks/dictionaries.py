"""A step of a sparse autoencoder against SAELens's and a dense one; training beside reading."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import seconds_note
from benchmarks.peers import UNMEASURED, in_peer
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size
from sonde import Stream
from sonde.explain import SparseAutoencoder
from sonde.store import Store, write_store

STEP_BUDGET, SAME_LOSS, READING_BUDGET, SAME_ROWS = 1 / 2.5, 1e-4, 0.05, 1e-5
SMALL: dict[str, Any] = {"dim": 16, "features": 64, "k": 4}


def dictionary_rows(size: Size) -> list[Row]:
    """Time of a step against the same one with dense features, the loss, and what reading takes."""
    dim, features, k, n = size.pick((512, 4096, 32, 4096), (16, 64, 4, 256))
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    method = SparseAutoencoder(features=features, k=k, batch=n, mixed=1, rate=1e-4)
    learner: Any = method.reads()["trained"]
    draw = torch.arange(n)  # of the group of each row: a tenth of the groups is held out
    start = learner.close_pass(learner.survey(learner.start(dim), x, draw))
    batch = learner.prepared(start, x).columns
    live = start.weights.live()

    def ours() -> float:
        loss, _ = learner.loss(start, live, *batch)
        learner.step(start, live, torch.autograd.grad(loss, live.values))
        live.steps += 1
        return float(loss.detach())

    dense = _dense(start.weights.values, batch[0], k)
    losses = ours(), dense()
    taken = interleaved({PLAIN: dense, "sparse": ours, AGAIN: dense}, size.rounds, warm_ups=1)
    ratio = ratio_of(taken, "sparse")
    what = f"a step {dim} -> {features}, k = {k}, {n} rows, against dense features in plain torch"
    apart = abs(losses[0] / losses[1] - 1)
    return [
        Row(
            "dictionary", what, ratio.median, "x", STEP_BUDGET, ratio.spread, ratio.rounds,
            ratio.noise,
        ),
        Row("dictionary", "relative difference of the losses of both", apart, "", SAME_LOSS),
        *_peer_rows(size, {"dim": dim, "features": features, "k": k, "n": n}),
        *_reading_rows(size, dim, features, k),
    ]  # fmt: skip


def _peer_rows(size: Size, shape: dict[str, Any]) -> list[Row]:
    """Time of a step against SAELens's trainer, with its dense and its sparse activations."""
    rows: list[Row] = []
    step = "a step {dim} -> {features}, k = {k}, {n} rows".format(**shape)
    for sparse, kind in ((False, "dense, its default"), (True, "sparse")):
        what = f"{step}, against SAELens's trainer, {kind}"
        try:
            ask = in_peer("dictionary_runner", size.offline)
            taken = ask("times", rounds=size.rounds, sparse=sparse, **shape)
        except UNMEASURED as error:
            rows.append(not_measured("dictionary", what, str(error)))
            continue
        note = f"{seconds_note(taken)}; {taken['version']}"
        spread, rounds = taken["spread"], taken["rounds"]
        rows += [
            Row("dictionary", what, taken["median"], "x", STEP_BUDGET, spread, rounds, note),
            Row(
                "dictionary",
                f"relative difference of both losses, {kind}",
                taken["apart"],
                "",
                SAME_LOSS,
            ),
        ]
    what = "rows rebuilt by SAELens from our files, and by ours from its, largest difference"
    try:
        apart = in_peer("dictionary_runner", size.offline)("layout", **SMALL)
        rows.append(Row("dictionary", what, apart, "", SAME_ROWS))
    except UNMEASURED as error:
        rows.append(not_measured("dictionary", what, str(error)))
    return rows


def _dense(values: tuple[Tensor, ...], x: Tensor, k: int) -> Callable[[], float]:
    """Return a step as it is usually written: all features dense, Adam, rows of unit length."""
    encoder, bias, decoder, offset = (v.clone().requires_grad_() for v in values)
    leaves = [encoder, bias, decoder, offset]
    optimiser = torch.optim.Adam(leaves, lr=1e-4)

    def step() -> float:
        pre = ((x - offset) @ encoder.T + bias).relu()
        top = pre.topk(k, dim=1, sorted=False)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        loss = (x - z @ decoder - offset).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            grad = decoder.grad
            assert grad is not None
            grad -= (grad * decoder).sum(1, keepdim=True) * decoder
            optimiser.step()
            decoder.div_(decoder.norm(dim=1, keepdim=True))
        return float(loss.detach())

    return step


def _reading_rows(size: Size, dim: int, features: int, k: int) -> list[Row]:
    n = size.pick(16_384, 512)
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(1))
    method = SparseAutoencoder(features=features, k=k, batch=size.pick(4096, 64), mixed=1)
    learner: Any = method.reads()["trained"]
    state = learner.close_pass(learner.survey(learner.start(dim), x, torch.arange(n)))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(write_store(Stream.of(x), Path(folder) / "rows"))

        def read() -> None:
            for batch in store:
                for rows in batch.rows.values():
                    rows.sum()

        def train() -> None:
            now = state
            for batch in store:
                for rows in batch.rows.values():
                    now = learner.update(now, rows, torch.as_tensor(batch.order))
            learner.close_pass(now)

        taken = interleaved({"read": read, PLAIN: train, AGAIN: train}, 2, warm_ups=0)
    found = ratio_of(taken, "read")
    what = f"reading {n} stored rows of {dim}, a share of training on them once"
    row = Row("dictionary", what, found.median, "x", READING_BUDGET, found.spread, found.rounds)
    return [row]
