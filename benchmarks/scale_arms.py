"""What a user writes with each library: hidden states to disk, and a covariance at each site.

``ARMS`` runs these functions as they stand, and their lines are counted. Every import but that of
sonde stands inside: each library lives in an environment of its own.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH = 16


def sonde_model(model: Path) -> Any:
    """Load it."""
    import sonde

    return sonde.load(str(model))


def sonde_disk(model: Any, texts: Path, blocks: Sequence[int], place: Path) -> None:
    """Write the rows."""
    import sonde
    from sonde.store import write_store

    sites = [f"transformer.h.{k}" for k in blocks]
    write_store(sonde.read(model, str(texts), sites, "tokens", batch_size=BATCH), place)


def sonde_covariance(
    model: Any, texts: Path, blocks: Sequence[int], place: Path
) -> dict[int, Tensor]:
    """Fit the covariances."""
    import sonde
    from sonde.measure import Covariance

    sites = {f"transformer.h.{k}:out": k for k in blocks}
    stream = sonde.read(model, str(texts), list(sites), "tokens", batch_size=BATCH)
    fitted = sonde.fit(Covariance(), stream, directory=place)
    return {k: fitted.result("covariance", site).covariance for site, k in sites.items()}


def sonde_rows(place: Path, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Read the ranges that are committed; ``Store`` itself refuses a store that lacks some."""
    from sonde.store.dataset import DataSet

    found = {f"transformer.h.{k}:out": k for k in blocks}
    written = DataSet(place)
    keys = {key: found[key.partition("|")[0]] for key in written.schema}
    parts: dict[int, list[Tensor]] = {k: [torch.empty(0)] for k in blocks}
    missing = written.missing()
    for span in written.manifest.ranges():
        for unit in range(*span) if span not in missing else ():
            for batch in written.batches(unit, frozenset(keys)):
                for key, k in keys.items():
                    parts[k].append(batch.rows[key])
    return {k: torch.cat(p[1:] or p) for k, p in parts.items()}


def plain_model(model: Path) -> Any:
    """Load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


@torch.no_grad()
def plain_rows(loaded: Any, texts: Path, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Collect the rows."""
    model, tokenizer = loaded
    rows: dict[int, list[Tensor]] = {k: [] for k in blocks}

    def hook(k: int) -> Callable[..., None]:
        return lambda module, args, output: rows[k].append(output.flatten(0, 1))

    handles = [model.transformer.h[k].register_forward_hook(hook(k)) for k in blocks]
    lines = texts.read_text().splitlines()[1:]
    for start in range(0, len(lines), BATCH):
        model(**tokenizer(lines[start : start + BATCH], return_tensors="pt"))
    for handle in handles:
        handle.remove()
    return {k: torch.cat(parts) for k, parts in rows.items()}


def lens_model(model: Path) -> Any:
    """Load it."""
    from transformer_lens.model_bridge import (  # pyright: ignore[reportMissingImports]
        TransformerBridge,
    )

    return TransformerBridge.boot_transformers(str(model), device="cpu")


@torch.no_grad()
def lens_rows(bridge: Any, texts: Path, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Collect the rows."""
    names = {f"blocks.{k}.hook_out": k for k in blocks}
    rows: dict[int, list[Tensor]] = {k: [] for k in blocks}
    lines = texts.read_text().splitlines()[1:]
    for start in range(0, len(lines), BATCH):
        tokens = bridge.to_tokens(lines[start : start + BATCH], prepend_bos=False)
        _, cache = bridge.run_with_cache(tokens, names_filter=list(names))
        for name, k in names.items():
            rows[k].append(cache[name].flatten(0, 1))
    return {k: torch.cat(parts) for k, parts in rows.items()}


def nnsight_model(model: Path) -> Any:
    """Load it."""
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]

    return LanguageModel(str(model), device_map="cpu", dispatch=True)


@torch.no_grad()
def nnsight_rows(model: Any, texts: Path, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Collect the rows."""
    import nnsight  # pyright: ignore[reportMissingImports]

    rows: dict[int, list[Tensor]] = {k: [] for k in blocks}
    lines = texts.read_text().splitlines()[1:]
    for start in range(0, len(lines), BATCH):
        with model.trace(lines[start : start + BATCH]):
            found = nnsight.save([model.transformer.h[k].output for k in blocks])
        for k, x in zip(blocks, found, strict=True):
            rows[k].append(x.flatten(0, 1))
    return {k: torch.cat(parts) for k, parts in rows.items()}


def to_disk(rows: dict[int, Tensor], place: Path) -> None:
    """Write the rows."""
    torch.save(rows, place)


def to_covariance(rows: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return the covariances."""
    return {k: torch.cov(x.T, correction=0) for k, x in rows.items()}


@dataclass(frozen=True)
class Arm:
    """A library that takes part in the comparison.

    Parameters
    ----------
    load : callable
        Takes a folder and returns the model.
    rows : callable or None
        Takes a model, texts and blocks and returns rows in memory; None if rows stay on disk.
    """

    load: Callable[[Path], Any]
    rows: Callable[..., dict[int, Tensor]] | None = None

    def run(self, job: str, *given: Any, place: Path) -> dict[int, Tensor]:
        """Do a job; a job on disk gives nothing."""
        if self.rows is None:
            return (sonde_disk if job == DISK else sonde_covariance)(*given, place=place) or {}
        if job == DISK:
            to_disk(self.rows(*given), place)
            return {}
        return to_covariance(self.rows(*given))

    def n_lines(self, job: str) -> int:
        """Return how many lines a user writes for a job."""
        if self.rows is None:
            parts: list[Any] = [self.load, sonde_disk if job == DISK else sonde_covariance]
        else:
            parts = [self.load, self.rows, to_disk if job == DISK else to_covariance]
        return sum(map(lines_of, parts))

    def on_disk(self, place: Path, blocks: Sequence[int]) -> dict[int, Tensor]:
        """Return the rows that can be read from disk."""
        return sonde_rows(place, blocks) if self.rows is None else torch.load(place)


DISK, COVARIANCE = "rows to disk", "covariance"
ARMS = {
    "sonde": Arm(sonde_model),
    "plain hooks": Arm(plain_model, plain_rows),
    "transformer-lens": Arm(lens_model, lens_rows),
    "nnsight": Arm(nnsight_model, nnsight_rows),
}


def lines_of(function: Callable[..., Any]) -> int:
    """Return how many lines the body of a function has, without its docstring and blank ones."""
    import ast
    import textwrap

    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    body = ast.parse(source).body[0].body[1:]  # type: ignore[attr-defined]
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(line.strip()) for line in lines)
