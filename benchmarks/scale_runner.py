"""Runs in the environment of each arm of ``scale``: one job, its time and its memory."""

import string
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.child import added_peak
from benchmarks.scale_arms import ARMS

LOADED = "loaded"
LETTERS, END = string.ascii_letters, "<|endoftext|>"


def make(home: str, depth: int, width: int, texts: int, length: int, warm: int) -> None:
    """Write a model of GPT-2's shape, random weights and a letter a token, and files of texts."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    words = {c: k for k, c in enumerate([END, *LETTERS])}
    GPT2Tokenizer(vocab=words, merges=[], pad_token=END).save_pretrained(f"{home}/model")
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=depth,
        n_embd=width,
        n_head=max(1, width // 64),
        vocab_size=len(words),
        n_positions=length + 1,  # one peer puts a token in front and takes it away again
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(f"{home}/model")
    drawn = torch.randint(len(LETTERS), (texts, length)).tolist()
    lines = ["text", *("".join(LETTERS[k] for k in line) for line in drawn)]
    for name, chosen in (("texts.csv", lines), ("warm.csv", lines[: warm + 1])):
        Path(home, name).write_text("\n".join(chosen) + "\n")


def work(arm: str, job: str, home: str, place: str, blocks: list[int]) -> dict[str, Any]:
    """Do a job once, after a few texts that warm up; return seconds and MiB beyond the model."""
    here, there, chosen = Path(home), Path(place), ARMS[arm]
    model = chosen.load(here / "model")
    chosen.run(job, model, here / "warm.csv", blocks, place=there.with_name(f"{there.name}-warm"))
    there.with_name(f"{there.name}-{LOADED}").touch()
    taken: dict[str, Any] = {}

    def once() -> dict[int, Tensor]:
        wall, process = time.perf_counter(), time.process_time()
        made = chosen.run(job, model, here / "texts.csv", blocks, place=there)
        taken["process"] = time.process_time() - process
        taken["wall"] = time.perf_counter() - wall
        if made:
            torch.save(made, there.with_name(f"{there.name}-result"))
        return made

    taken["peak"] = added_peak(once)
    taken["bytes"] = _bytes(there)
    return taken


def left(arm: str, place: str, blocks: list[int], whole: str) -> dict[str, Any]:
    """Return how many rows of a site can be read, and how far they lie from those of a file.

    Rows are in the order of the texts, so that those of a part are the first ones.
    """
    there = Path(place)
    found: dict[str, Any] = {"rows": 0, "apart": 0.0, "bytes": _bytes(there)}
    if not there.exists() or (there.is_dir() and not (there / "store.json").exists()):
        return found
    rows, truth = ARMS[arm].on_disk(there, blocks), torch.load(whole, mmap=True)
    found["rows"] = min(len(rows[k]) for k in blocks)
    parts = [(rows[k] - truth[k][: len(rows[k])]).abs() for k in blocks if len(rows[k])]
    found["apart"] = max((float(x.max()) for x in parts), default=0.0)
    return found


def _bytes(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place] if place.exists() else []
    return sum(f.stat().st_size for f in files if f.is_file())


def differ(first: str, second: str) -> float:
    """Return the largest difference of the covariances, relative to the largest entry."""
    a, b = torch.load(first), torch.load(second)
    return max(float((a[k].double() - b[k].double()).abs().max() / b[k].abs().max()) for k in b)
