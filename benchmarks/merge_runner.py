"""Runs in the environment of mergekit: the same merges from disk to disk, ours and its."""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.against import against
from benchmarks.child import MIB, resident
from benchmarks.environments import peer_version
from sonde.edit import Dare, TaskArithmetic, Ties
from sonde.weights import merge_models
from sonde.weights.merging import MergeRule

DENSITY, DROP, WEIGHT = 0.2, 0.9, 0.5
RULES: dict[str, MergeRule] = {"TIES": Ties(DENSITY), "DARE": Dare(DROP, TaskArithmetic(WEIGHT))}
THEIRS: dict[str, tuple[str, dict[str, float], bool]] = {
    "TIES": ("ties", {"density": DENSITY, "weight": 1.0}, True),
    "DARE": ("dare_linear", {"density": 1 - DROP, "weight": WEIGHT}, False),
}
EVERY_SECONDS = 0.002


def merges(tiny: bool, rounds: int) -> dict[str, Any]:
    """Return time against mergekit, our memory, and how far the merged weights are apart."""
    config: Any = import_module("mergekit.config")
    merge: Any = import_module("mergekit.merge")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = _models(folder, tiny)
        size = (paths[0] / "model.safetensors").stat().st_size / MIB
        found: dict[str, Any] = {"peer": peer_version("mergekit"), "model_mib": size, "rules": {}}
        for name, rule in RULES.items():
            method, parameters, normalize = THEIRS[name]
            asked = config.MergeConfiguration.model_validate(
                {
                    "merge_method": method,
                    "base_model": str(paths[0]),
                    "models": [{"model": str(p), "parameters": parameters} for p in paths[1:]],
                    "parameters": {"normalize": normalize},
                    "dtype": "float32",
                }
            )
            options: Any = merge.MergeOptions(
                copy_tokenizer=False, quiet=True, write_model_card=False
            )
            ours, theirs = folder / "ours", folder / "theirs"
            work = {
                "ours": _into(ours, partial(merge_models, paths[0], paths[1:], rule, ours)),
                "theirs": _into(theirs, partial(merge.run_merge, asked, str(theirs), options)),
            }
            one = against(work["ours"], work["theirs"], rounds)
            peaks = {who: _anonymous_peak(one_merge) for who, one_merge in work.items()}
            apart = _apart(ours, theirs)
            found["rules"][name] = one | {"mib": peaks, "apart": apart}
        return found


def _models(folder: Path, tiny: bool) -> list[Path]:
    """Save a base and two models of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, depth = (64, 2) if tiny else (768, 12)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        vocab_size=512 if tiny else 8192,
    )
    model: Any = LlamaForCausalLM(config)
    paths = []
    for name in ("base", "a", "b"):
        for parameter in model.parameters() if paths else ():
            parameter.data += 0.01 * torch.randn_like(parameter)
        paths.append(folder / name)
        model.save_pretrained(paths[-1])
    return paths


def _into(folder: Path, merge: Callable[[], Any]) -> Callable[[], None]:
    def work() -> None:
        for old in (folder, folder.with_name(f"{folder.name}.patch")):
            shutil.rmtree(old, ignore_errors=True)
        merge()

    return work


def _anonymous_peak(work: Callable[[], Any]) -> float:
    """Return by how many MiB a piece of work raised the memory that is no mapped file."""
    before, seen, done = resident("RssAnon"), [0.0], threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(resident("RssAnon"))
            time.sleep(EVERY_SECONDS)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(seen) - before


def _apart(one: Path, other: Path) -> float:
    """Return the largest difference between the weights in two folders."""
    from safetensors.torch import load_file

    tensors = [
        {name: x for file in path.glob("*.safetensors") for name, x in load_file(file).items()}
        for path in (one, other)
    ]
    return max(float((x - tensors[1][name]).abs().max()) for name, x in tensors[0].items())
