"""What losses at sites add to a step of training, and losses against those of other libraries."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.child import added_peak, run_child
from benchmarks.nets import VOCABULARY, _config
from benchmarks.peers import time_and_memory_rows
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size

ONE, FOUR, TEACHER, OVER, PEER, MEMORY = 1.04, 1.10, 1.40, 1.00, 1.0, 1.02
ROWS, LENGTH = 8, 64
Losses = Mapping[Any, nn.Module]


def loss_rows(size: Size) -> Iterator[Row]:
    """Time and memory of a step with losses, and of losses alone beside other libraries."""
    depth, width = size.pick((12, 512), (4, 64))
    yield from _steps(size, depth, width)
    yield _memory(size, depth, width)
    shape = size.pick({"n": 4096, "dim": 256}, {"n": 32, "dim": 8})
    for what in (
        "views, lightly",
        "views, pytorch-metric-learning",
        "labels, pytorch-metric-learning",
        "cosine, lightly",
    ):
        yield from against_peer(
            size, "losses", what, f"{'Align' if 'cosine' in what else 'Contrast'} of {what}", shape
        )


def against_peer(size: Size, name: str, what: str, told: str, shape: dict[str, Any]) -> list[Row]:
    """Time and memory of ours over a peer's, in the peers' environment."""
    told = f"{told}, {' x '.join(str(n) for n in shape.values())}"

    def notes(taken: dict[str, Any]) -> tuple[str, str]:
        return f"; values differ by {taken['apart']:.1e}", ""

    return time_and_memory_rows(
        "losses_runner", name, told, size, {"what": what, **shape}, (PEER, PEER), notes
    )


def _model(depth: int, width: int, seed: int = 0) -> nn.Module:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(seed)
    config = _config(depth, width)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config).train()


def _losses(depth: int, n: int) -> Losses:
    from sonde.train import Align

    sites = [depth * (2 * i + 1) // (2 * n) for i in range(n)]
    return {f"blocks.{site}": Align("mse" if i % 2 else "cosine") for i, site in enumerate(sites)}


def _stepping(
    net: nn.Module, losses: Losses | None, width: int, **options: Any
) -> Callable[[], None]:
    """Return one step of plain gradients, with the losses attached while it runs."""
    from sonde.tap.training.terms import training

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    table = torch.randn(ROWS, width, generator=generator)
    sgd = torch.optim.SGD(net.parameters(), lr=1e-4)
    block = None if losses is None else training(net, losses, weight=0.1, **options)
    terms = None if block is None else block.__enter__()
    if terms is not None:
        terms.close()

    def step() -> None:
        if terms is not None:
            terms.open()
        loss: Tensor = net(input_ids=ids, labels=ids).loss
        if terms is not None:
            given: dict[str, Any] = {} if options else {"y": table}
            loss = loss + terms.loss(**given)
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        if terms is not None:
            terms.step()
            terms.close()

    return step


def _steps(size: Size, depth: int, width: int) -> Iterator[Row]:
    from sonde.core.schedule import StopAt
    from sonde.tap.training.terms import training
    from sonde.train import Align

    net, teacher = _model(depth, width), _model(depth, width, seed=1)
    pair = {(f"blocks.{depth // 2}", f"teacher:blocks.{depth // 2}"): Align()}
    plain = _stepping(net, None, width)
    arms = {
        "one loss at one site": (_stepping(net, _losses(depth, 1), width), ONE),
        "four losses at four sites": (_stepping(net, _losses(depth, 4), width), FOUR),
        "a loss with a frozen teacher of the same size": (
            _stepping(net, pair, width, teacher=teacher),
            TEACHER,
        ),
    }
    taken = interleaved(
        {name: work for name, (work, _) in arms.items()} | {PLAIN: plain, AGAIN: plain}, size.rounds
    )
    what = f"a step of {depth} x {width}, {ROWS} x {LENGTH} tokens, with"
    for name, (_, budget) in arms.items():
        found = ratio_of(taken, name)
        yield Row(
            "losses", f"{what} {name}", found.median, "x", budget, found.spread, found.rounds,
            found.noise,
        )  # fmt: skip
    with training(net, _losses(depth, 4), weight=StopAt(0.1, 0)) as terms:
        taken = interleaved({"over": plain, PLAIN: plain, AGAIN: plain}, size.rounds)
        hooks = terms.n_hooks
    found = ratio_of(taken, "over")
    yield Row(
        "losses", f"{what} four losses whose schedules are over", found.median, "x", OVER,
        found.spread, found.rounds, f"{hooks} hooks; {found.noise}",
    )  # fmt: skip


def _memory(size: Size, depth: int, width: int) -> Row:
    what = f"a step of {depth} x {width} with four losses, memory over that of the plain step"
    plain, ours = (
        run_child("benchmarks.train:added", steady=True, n=n, depth=depth, width=width)
        for n in (0, 4)
    )
    note = f"adds {ours:.0f} MiB, the plain step {plain:.0f}"
    return Row("losses", what, ours / max(plain, 1.0), budget=MEMORY, note=note)


def added(depth: int, width: int, n: int) -> float:
    """Return by how many MiB a second step raises the memory of this process."""
    net = _model(depth, width)
    step = _stepping(net, _losses(depth, n) if n else None, width)
    step()
    return added_peak(step)
