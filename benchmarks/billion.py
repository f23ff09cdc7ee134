"""A model of a billion random weights in bfloat16 through every kind of job: seconds and peaks.

Each job runs in a process of its own on the folder that a first process writes. The peak is that of
the process, less what it held when sonde and transformers were imported.

    python -m benchmarks.billion                    # 24 GiB of memory, about 10 minutes
    python -m benchmarks.billion --billions 0.5 --only read rtn
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.child import MIB, resident, run_child
from benchmarks.large import SHAPES, VOCABULARY

READING = 1.3
"""Largest peak of reading, in parts of the weights."""
SHARD = "500MB"
N_TEXTS, LENGTH = 6, 24


def texts() -> list[dict[str, list[int]]]:
    """Return texts of random tokens."""
    import torch

    draw = torch.Generator().manual_seed(0)
    each = [torch.randint(3, VOCABULARY, (LENGTH - i % 5,), generator=draw) for i in range(N_TEXTS)]
    return [{"input_ids": ids.tolist()} for ids in each]


def build(folder: str, shape: list[int]) -> dict[str, float]:
    """Write the model in shards."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    depth, width, inner = shape
    sizes: Any = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": depth}
    heads: Any = {
        "num_attention_heads": max(1, width // 128),
        "num_key_value_heads": max(1, width // 512),
    }
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)).eval()
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(f"{folder}/model", max_shard_size=SHARD)
    n = sum(p.numel() for p in model.parameters())
    return {"weights": float(n), "weight_mib": 2 * n / MIB}


def read(folder: str) -> Any:
    """Write the states of all blocks into a store."""
    import sonde
    from sonde.store import write_store

    return write_store(sonde.read(sonde.load(f"{folder}/model"), texts()), f"{folder}/acts")


def fit(folder: str) -> None:
    """Fit a detector at every block."""
    import sonde

    stream = sonde.read(sonde.load(f"{folder}/model"), texts())
    sonde.fit("knn(k=1)", stream, progress=False).save(f"{folder}/probe.sonde")


def score(folder: str) -> None:
    """Score texts by the detector."""
    import sonde

    model = sonde.load(f"{folder}/model")
    sonde.score(f"{folder}/probe.sonde", model, texts()[:2], progress=False)


def explain(folder: str) -> None:
    """Explain the next token of one text by gradients."""
    import torch

    import sonde
    from sonde.explain import GradTimesInput

    model = sonde.load(f"{folder}/model")
    GradTimesInput().explain(model, {"input_ids": torch.tensor([texts()[0]["input_ids"]])})


def rtn(folder: str) -> None:
    """Round all linear layers to four bits and write the folder."""
    import sonde
    from sonde.compress import RTN

    model = sonde.load(f"{folder}/model")
    RTN().plan(model).save(f"{folder}/model", f"{folder}/rtn")


def gptq(folder: str) -> None:
    """Round two blocks by their inputs and write the folder."""
    import sonde
    from sonde.compress import GPTQ

    model = sonde.load(f"{folder}/model")
    method = GPTQ(layers=("*.layers.0.*", "*.layers.1.*"))
    method.plan(model, {"calibration": texts()}).save(f"{folder}/model", f"{folder}/gptq")


JOBS: dict[str, Callable[[str], Any]] = {
    job.__name__: job for job in (read, fit, score, explain, rtn, gptq)
}


def measured(folder: str, job: str) -> dict[str, float]:
    """Return seconds, processor seconds and the peak in MiB of one job."""
    import transformers

    import sonde
    import sonde.compress
    import sonde.store

    _ = transformers.LlamaForCausalLM, sonde.read, sonde.fit
    before, began, wall = resident("VmRSS"), time.process_time(), time.perf_counter()
    JOBS[job](folder)
    peak, took = resident("VmHWM") - before, time.process_time() - began
    return {"seconds": time.perf_counter() - wall, "cpu": took, "peak_mib": peak}


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if reading holds too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.billion", description=__doc__)
    parser.add_argument("--billions", type=float, choices=list(SHAPES), default=1.0)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    typed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sonde-billion-") as folder:
        size = run_child("benchmarks.billion:build", folder=folder, shape=SHAPES[typed.billions])
        total = size["weight_mib"]
        print(f"{size['weights'] / 1e9:.2f} billion weights, {total:,.0f} MiB, shards of {SHARD}")
        print("\n| job | seconds | processor seconds | peak, MiB | peak / weights |")
        print("|---|---|---|---|---|", flush=True)
        is_within = True
        for job in typed.only:
            figures = run_child("benchmarks.billion:measured", folder=folder, job=job)
            ratio = figures["peak_mib"] / total
            is_within = is_within and (job != "read" or ratio <= READING)
            cells = [f"{figures['seconds']:.0f}", f"{figures['cpu']:.0f}"]
            cells += [f"{figures['peak_mib']:,.0f}", f"{ratio:.2f}"]
            print("| " + " | ".join([job, *cells]) + " |", flush=True)
        written = [p for p in Path(folder).rglob("*") if p.is_file()]
        print(f"\nfiles: {sum(p.stat().st_size for p in written) / MIB:,.0f} MiB")
    return int(not is_within)


if __name__ == "__main__":
    sys.exit(main())
