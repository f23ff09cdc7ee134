"""``python -m benchmarks``: every budget, measured."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.child import ONE_THREAD, fork_children

if TYPE_CHECKING:
    from benchmarks.rows import Row
    from benchmarks.size import Size

# Before anything imports torch or numpy.
os.environ.update(ONE_THREAD)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def registry() -> "dict[str, Callable[[Size], Iterable[Row]]]":
    """Return the benchmarks by name, in the order in which they run."""
    from benchmarks.attributing import attribution_rows
    from benchmarks.calibrating import calibration_rows
    from benchmarks.checking_data import audit_rows, label_rows
    from benchmarks.clustering import ray_rows
    from benchmarks.compress import cache_rows, compress_rows
    from benchmarks.detect import detector_rows, nac_rows
    from benchmarks.dictionaries import dictionary_rows
    from benchmarks.edit import (
        beam_rows,
        decoding_rows,
        fisher_rows,
        merge_models_rows,
        steering_rows,
    )
    from benchmarks.erasing import erase_rows, fact_rows
    from benchmarks.explain import atlas_rows, patching_rows, units_rows
    from benchmarks.generating import generation_time
    from benchmarks.guarding import guard_rows
    from benchmarks.importing import import_time
    from benchmarks.large import large_rows
    from benchmarks.layer_cka import layer_cka_rows
    from benchmarks.layers import layer_rows
    from benchmarks.measure import measure_rows
    from benchmarks.merging import merge_rows
    from benchmarks.sampling import sample_rows
    from benchmarks.scale import scale_rows
    from benchmarks.scan_costs import scan_cost_rows
    from benchmarks.scanning import scan_memory, scan_small, scan_time
    from benchmarks.serving import serve_rows
    from benchmarks.serving_promises import promise_rows
    from benchmarks.soaking import soak_rows
    from benchmarks.storing import storing_rows
    from benchmarks.tapping import early_stop, tap_memory, tap_time
    from benchmarks.train import loss_rows
    from benchmarks.training import training_share

    return {
        "import": import_time,
        "tap": tap_time,
        "tap-memory": tap_memory,
        "stop": early_stop,
        "large": large_rows,
        "scan-small": scan_small,
        "nac": nac_rows,
        "detect": detector_rows,
        "fisher": fisher_rows,
        "merge-models": merge_models_rows,
        "steer": steering_rows,
        "decode": decoding_rows,
        "beams": beam_rows,
        "attribute": attribution_rows,
        "patch": patching_rows,
        "units": units_rows,
        "atlas": atlas_rows,
        "sample": sample_rows,
        "soak": soak_rows,
        "guard": guard_rows,
        "serve": serve_rows,
        "serve-promise": promise_rows,
        "generate": generation_time,
        "train": training_share,
        "dictionary": dictionary_rows,
        "calibrate": calibration_rows,
        "store": storing_rows,
        "cka": layer_cka_rows,
        "layers": layer_rows,
        "losses": loss_rows,
        "measure": measure_rows,
        "scan": scan_time,
        "scan-memory": scan_memory,
        "scan-cost": scan_cost_rows,
        "data": audit_rows,
        "labels": label_rows,
        "ray": ray_rows,
        "compress": compress_rows,
        "cache": cache_rows,
        "erase": erase_rows,
        "facts": fact_rows,
        "merge-scale": merge_rows,
        "scale": scale_rows,
    }


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure time and memory against plain forwards and other libraries.",
        epilog="Example: python -m benchmarks --only tap --only stop --json bench.json",
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes: only that it runs")
    parser.add_argument(
        "--only", action="append", choices=list(registry()), help="one benchmark; repeat for more"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a budget is exceeded")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument(
        "--write", action="store_true", help="put the figures on the page of the documentation"
    )
    parser.add_argument("--rounds", type=int, help="of interleaved arms; 9, or 3 with --tiny")
    parser.add_argument("--offline", action="store_true", help="install no other libraries")
    typed = parser.parse_args(arguments)
    if typed.write and typed.tiny:
        parser.error("--write: figures of toy sizes are no figures; leave out --tiny")
    return typed


def main(arguments: list[str] | None = None) -> int:
    """Run benchmarks, print the table, write the file; return the exit code."""
    import torch

    from benchmarks.page import write_page
    from benchmarks.rows import as_json, line, table, versions
    from benchmarks.size import Size

    torch.set_num_threads(1)
    typed = parsed(arguments)
    if typed.tiny:
        fork_children()
    rounds = typed.rounds if typed.rounds is not None else 3 if typed.tiny else 9
    size = Size(typed.tiny, typed.offline, rounds)
    about = versions()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    rows: list[Row] = []
    for name, run in registry().items():
        if typed.only and name not in typed.only:
            continue
        print(f"[{time.strftime('%H:%M:%S')}] {name}", file=sys.stderr, flush=True)
        for row in _measured(name, run, size):
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
            if typed.json is not None:
                found = as_json(rows, typed.tiny, about)
                typed.json.write_text(json.dumps(found, indent=1) + "\n")
        if typed.write:
            write_page(rows, about)
    print(table(rows))
    return int(typed.check and not all(row.is_within for row in rows))


def _measured(name: str, run: "Callable[[Size], Iterable[Row]]", size: "Size") -> "Iterator[Row]":
    """Yield a benchmark's rows as they come; an error becomes the last of them."""
    from benchmarks.rows import not_measured

    try:
        yield from run(size)
    except Exception as error:  # one broken benchmark must not take the others with it
        yield not_measured(name, name, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
