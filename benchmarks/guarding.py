"""What it costs to guard a running model: a forward with detectors against the plain one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nets import Tokens, classifier, forward_of, token_batch, transformer
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde import load
from sonde.core.instrument import Detector
from sonde.core.stream import Stream
from sonde.detect import KNN, NAC, Mahalanobis
from sonde.files.identity import MODEL_FACTS
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.watching.guard import Guard
from sonde.tap import live_stream

BUDGET, GRADIENT_BUDGET = 1.03, 3.2
GAUSSIAN = "Mahalanobis at all blocks"


@dataclass(frozen=True)
class _Guarded:
    """A net, the pattern of its blocks, and a probe of it."""

    net: nn.Module
    probe: Fitted
    blocks: list[str]


def guard_rows(size: Size) -> list[Row]:
    """Time of a forward under guard; the last token of each text is scored."""
    net = _guarded(transformer, [Mahalanobis(), KNN(k=50, m=size.pick(10_000, 100))], size, None)
    one = ["mahalanobis", ("knn", net.blocks[len(net.blocks) // 2])]
    arms = {
        f"{GAUSSIAN}, KNN at one": (one, BUDGET),
        f"{GAUSSIAN} alone": (["mahalanobis"], None),
        f"{GAUSSIAN}, KNN at all": (["mahalanobis", "knn"], None),
    }
    found = [row for n in (1, 8) for row in _ratios(net, arms, n, size)]
    return [*found, *_with_gradients(size)]


def _with_gradients(size: Size) -> list[Row]:
    """Time of a forward under guard with NAC at all blocks, which needs a backward."""
    detectors = [Mahalanobis(), KNN(k=50, m=size.pick(10_000, 100)), NAC()]
    net = _guarded(classifier, detectors, size, "kl_uniform")
    chosen = ["mahalanobis", ("knn", net.blocks[len(net.blocks) // 2]), "nac"]
    arms = {f"{GAUSSIAN}, KNN at one, NAC at all": (chosen, GRADIENT_BUDGET)}
    return [row for n in (1, 8) for row in _ratios(net, arms, n, size)]


def _guarded(
    make: Callable[[int, int], nn.Module],
    detectors: Sequence[Detector],
    size: Size,
    objective: str | None,
) -> _Guarded:
    """Return a net and a probe of its last tokens.

    Ten thousand rows of last tokens would take ten thousand forwards. The rows are mixtures of the
    states of a few texts instead: what is timed depends on their number alone.
    """
    depth, width = size.pick((12, 768), (3, 64))
    module = make(depth, width)
    n_texts, length = size.pick((8, 64), (8, 16))
    stream = live_stream(
        load(module), Tokens(n_texts, length, 8), "blocks", "tokens", objective=objective
    )
    batch = next(iter(stream))
    rows = {key: _mixtures(x, size.pick(12_600, 400)) for key, x in batch.rows.items()}
    grad = {key: _mixtures(x, size.pick(12_600, 400)) for key, x in batch.grad.items()}
    fitted = fit(detectors, Stream.of(rows, grad=grad or None), progress=False)
    identity = stream.identity()
    header = {
        **fitted.header,
        "model": {name: identity.get(name) for name in MODEL_FACTS},
        "reading": {"objective": objective, "keep_special": False},
        "sites": [
            {"text": s.key, "dim": s.dim, "reducer": "last", "axes": s.axes, "prefix": s.prefix}
            for s in stream.schema
        ],
    }
    return _Guarded(module, replace(fitted, header=header), list(rows))


def _mixtures(x: Tensor, n: int) -> Tensor:
    """Return rows with the mean and the covariance of those of ``x``, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    mean, m = x.mean(0), len(x)
    mixed = torch.randn(n, m, generator=generator) @ ((x - mean) / m**0.5)
    return mean + mixed + 0.1 * x.std() * torch.randn(mixed.shape, generator=generator)


def _ratios(
    guarded: _Guarded, arms: Mapping[str, tuple[list[Any], float | None]], n: int, size: Size
) -> list[Row]:
    kwargs = token_batch(n, size.pick(64, 16))
    plain = forward_of(guarded.net, **kwargs)
    runs: dict[str, Callable[[], Any]] = {PLAIN: plain}
    for what, (methods, _) in arms.items():
        runs[what] = _under(Guard(guarded.net, guarded.probe, methods=methods), plain)
    taken = interleaved({**runs, AGAIN: plain}, size.rounds)
    rows = []
    for what, (_, budget) in arms.items():
        ratio = ratio_of(taken, what)
        millis = 1e3 * sorted(taken[PLAIN])[len(taken[PLAIN]) // 2]
        rows.append(
            Row(
                "guard",
                f"guard, {n} x {size.pick(64, 16)} tokens, {what}",
                ratio.median,
                budget=budget,
                spread=ratio.spread,
                rounds=ratio.rounds,
                note=f"plain {millis:.0f} ms, {ratio.noise}",
            )
        )
    return rows


def _under(guard: Guard, forward: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with guard:
            return forward()

    return run
