"""A forward of a large transformer with random weights, with and without all its blocks tapped.

On a GPU the time is that of CUDA events, and the times are counted that a forward waits for the
GPU; on a CPU it is process time.

    python -m benchmarks.large --billions 8         # make bench-gpu
    python -m benchmarks.large --billions 0.5 --rows 1 --length 64 --rounds 5
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.child import ONE_THREAD

os.environ.update(ONE_THREAD)

import torch
from torch import nn

from benchmarks.protocol import AGAIN, PLAIN, ratio_of
from benchmarks.rows import Row, table, versions
from benchmarks.size import Size
from sonde.tap import Tap

BUDGET = 1.03
WAITED = "called a synchronizing CUDA operation"
SHAPES = {
    0.5: (20, 1536, 4096),
    1.0: (22, 1920, 5120),
    4.0: (32, 3072, 8192),
    8.0: (32, 4096, 14336),
}
TINY = (2, 128, 256)
VOCABULARY = 32_000


def transformer(shape: tuple[int, int, int], device: str) -> nn.Module:
    """Return a decoder in bfloat16, built on its device from a configuration."""
    from transformers import LlamaConfig, LlamaModel

    depth, width, inner = shape
    config = LlamaConfig(
        num_hidden_layers=depth,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=width // 128,
        num_key_value_heads=max(1, width // 512),
        vocab_size=VOCABULARY,
        use_cache=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaModel(config).eval()
    finally:
        torch.set_default_dtype(before)


def seconds(work: Callable[[], Any], device: str) -> float:
    """Return how long a call takes on its device."""
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def waits(work: Callable[[], Any]) -> int:
    """Return how often a call waits for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(WAITED in str(w.message) for w in seen)


def large_rows(size: Size) -> list[Row]:
    """Return the ratio on this machine's processor, with half a billion weights."""
    shape = size.pick(SHAPES[0.5], TINY)
    return [ratio_row(shape, "cpu", 1, size.pick(64, 8), "mean", min(5, size.rounds))]


def ratio_row(
    shape: tuple[int, int, int], device: str, n_rows: int, length: int, reducer: str, rounds: int
) -> Row:
    """Return the ratio of the tapped forward to the plain one."""
    net = transformer(shape, device)
    n = sum(p.numel() for p in net.parameters())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (n_rows, length), generator=generator).to(device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tap = Tap(net, "layers.*", reducer)

    def plain() -> None:
        with torch.no_grad():
            net(**given)

    def tapped() -> None:
        with tap:
            tap.run(**given)
            _ = tap.rows

    arms = {PLAIN: plain, "tap": tapped, AGAIN: plain}
    for work in (plain, tapped):
        work()
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        names = list(arms)
        for name in names[turn % 3 :] + names[: turn % 3]:
            taken[name].append(seconds(arms[name], device))
    ratio = ratio_of(taken, "tap")
    millis = 1e3 * sum(taken[PLAIN]) / rounds
    note = f"{n / 1e9:.2f} billion weights, plain {millis:.0f} ms, {ratio.noise}"
    if device != "cpu":
        note += f", waits {waits(plain)} plain and {waits(tapped)} tapped"
    depth = net.config.num_hidden_layers  # type: ignore[union-attr]
    what = f"tap, large model in bfloat16, {n_rows} x {length} tokens, {depth} blocks, {device}"
    return Row("large", what, ratio.median, "x", BUDGET, ratio.spread, ratio.rounds, note)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 where the budget is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--billions", type=float, choices=list(SHAPES), default=1.0)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--reducer", default="mean")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    typed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if typed.device != "cpu" and not torch.cuda.is_available():
        print("no GPU is found", file=sys.stderr)
        return 2
    print("\n".join(f"{name}: {value}" for name, value in versions().items()))
    shape = SHAPES[typed.billions]
    row = ratio_row(shape, typed.device, typed.rows, typed.length, typed.reducer, typed.rounds)
    print(table([row]))
    return int(not row.is_within)


if __name__ == "__main__":
    sys.exit(main())
