"""Walls of one machine: rewrites that scale channels, clusters of many units, the race of compress.

    python -m benchmarks.walls --model FOLDER          # all three, in processor time of one thread
    python -m benchmarks.walls --only clusters --units 1024

``scales`` plans GPTQ, AWQ and SmoothQuant on the first blocks of a causal language model, and
counts how often the head computes logits. ``clusters`` takes the result of ``unit_clusters``.
``timing`` compresses the blocks with and without the race of the old and the new model.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import ONE_THREAD

os.environ.update(ONE_THREAD)

import torch

PARTS = ("scales", "clusters", "timing")
N_TEXTS, LENGTH, N_ROWS = 16, 128, 4096
Row = tuple[str, str, float]


def texts(vocabulary: int) -> list[dict[str, list[int]]]:
    """Return texts of random tokens."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, vocabulary, (N_TEXTS, LENGTH), generator=draw)
    return [{"input_ids": each.tolist()} for each in tokens]


def scales(folder: str, n_blocks: int) -> Iterator[Row]:
    """Plan three rewrites of the same blocks of one model."""
    from transformers import AutoModelForCausalLM

    from sonde.compress import AWQ, GPTQ, SmoothQuant, layer_grams
    from sonde.core.inputs import Model
    from sonde.data.opening import open_inputs

    net: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = Model(net, config=net.config, task="causal")
    inputs = open_inputs(model, texts(net.config.vocab_size), batch_size=4)
    layers = tuple(f"model.layers.{i}.*" for i in range(n_blocks))
    calls = [0]
    net.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    for rewrite in (GPTQ, AWQ, SmoothQuant):
        calls.clear()
        began = time.process_time()
        method = rewrite(bits=4, layers=layers)
        if rewrite is GPTQ:
            given: Any = layer_grams(model, inputs, layers=layers, progress=False)
        else:
            given = inputs
        method.plan(model, {"calibration": given})
        yield rewrite.__name__, f"{n_blocks} blocks, {len(calls)} times logits", since(began)


def clusters(n_units: int) -> Iterator[Row]:
    """Take the result of clusters of correlated units."""
    from sonde.measure import UnitClusters

    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(N_ROWS, n_units // 16, generator=draw).repeat_interleave(16, 1)
    rows = shared + torch.randn(N_ROWS, n_units, generator=draw)
    began = time.process_time()
    result = UnitClusters(k=n_units // 16).fit(rows)
    what = f"{n_units:,} units, {N_ROWS:,} rows, stability {result.stability:.2f}"
    yield "unit_clusters", what, since(began)


def timing(folder: str, n_blocks: int) -> Iterator[Row]:
    """Compress blocks with and without the race."""
    import json

    import sonde

    vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    layers = [f"model.layers.{i}.*" for i in range(n_blocks)]
    for raced in (True, False):
        with tempfile.TemporaryDirectory() as place:
            began = time.process_time()
            sonde.compress_model(
                folder,
                texts(vocabulary),
                Path(place) / "small",
                to="4bit",
                method="rtn",
                layers=layers,
                held=8,
                timing=raced,
                progress=False,
            )
            yield "compress", "with timing" if raced else "--no-timing", since(began)


def since(began: float) -> float:
    """Return the processor time since a moment, in seconds."""
    return time.process_time() - began


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walls", description=__doc__)
    parser.add_argument("--model", help="folder of a causal language model with model.layers")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    typed = parser.parse_args()
    torch.set_num_threads(1)
    if typed.model is None and {"scales", "timing"} & set(typed.only):
        parser.error("scales and timing need --model FOLDER")
    print("| what | of | processor time, s |\n" + "|---" * 3 + "|")
    parts = {
        "scales": lambda: scales(typed.model, typed.blocks),
        "clusters": lambda: clusters(typed.units),
        "timing": lambda: timing(typed.model, typed.blocks),
    }
    for part in typed.only:
        for name, what, seconds in parts[part]():
            print(f"| {name} | {what} | {seconds:.2g} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
