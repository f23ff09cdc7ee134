"""``sonde.compare_caches``: measure smaller key-value caches on a user's own texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sonde import compress
from sonde.core import CachePacking, CacheRule
from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError, near
from sonde.core.renaming import renamed
from sonde.data import open_inputs
from sonde.data.unloaded import LANGUAGE, require_task
from sonde.run.compressing.caches import CacheTrial, smallest, suited, try_caches
from sonde.run.instruments.families import snake_case
from sonde.run.reading.load import load


@dataclass(frozen=True, eq=False)
class CacheComparison:
    """Costs of all caches, and the recommended cache.

    Attributes
    ----------
    document : dict
        The figures as JSON: what ``sonde cache --json`` prints.
    trials : list of CacheTrial
    best : CacheTrial or None
        The smallest cache whose predictions differ by at most ``max_kl``.
    settings : tuple of str
        The shares and bits that were asked for, in their order.
    """

    document: dict[str, Any]
    trials: list[CacheTrial]
    best: CacheTrial | None
    settings: tuple[str, ...]

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Comparison of caches", self.document)


@renamed("loading")
def compare_caches(
    model: Any,
    data: Any,
    rules: Sequence[str] = (),
    *,
    budgets: Sequence[float] = (0.5, 0.25, 0.125),
    bits: Sequence[int] = (8, 4, 2),
    max_kl: float = 0.05,
    step: int = 16,
    limit: int = 64,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
    progress: bool = True,
    **reading: Any,
) -> CacheComparison:
    """Try smaller key-value caches: what they save and what they cost.

    Half of each text is read as a prompt; the rest is read in parts, with the cache made small
    after each, and every prediction is compared with that of the whole cache. The same as
    ``sonde cache``.

    Parameters
    ----------
    model : str, path, Model or module
        A language model.
    data : data
        Texts, as in ``sonde.read``.
    rules : sequence of str
        Caches to try, such as ``snap_kv``; by default all, in their usual form.
    budgets : sequence of float
        Shares of the tokens or bytes that stay, in (0, 1].
    bits : sequence of int
        Bits of a number in caches that round: 2, 4 or 8.
    max_kl : float, default=0.05
        Nats of divergence that the recommended cache may cost.
    step : int, default=16
        Tokens read between two evictions.
    limit : int, default=64
        How many texts, or pieces of texts, are read.
    batch_size : int, default=8
        Texts in one forward.
    device : str or torch.device, default="auto"
        Device of the model; ``auto`` takes cuda, mps or cpu, as ``sonde.load``.
    dtype : str or torch.dtype, default="auto"
        Type of the weights; ``auto`` takes the type that the configuration names.
    trust_remote_code : bool, default=False
        Whether Python code that comes with the checkpoint may run.
    processor : object, optional
        Tokenizer, image processor, or function that turns an item into a tensor; by default the
        model's own.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Raises
    ------
    InputError
        If no cache has such a name, or no text has two tokens.
    """
    if limit < 1:
        raise InputError(f"--limit: expected at least 1, got {limit}.")
    kinds = cache_kinds()
    for word in rules:
        if word not in kinds:
            raise InputError(
                f"cache: no cache is called {word!r}.{near(word, kinds)} Known: {', '.join(kinds)}."
            )
    forms = [
        kind(**{name: value})
        for kind, name in (kinds[word] for word in rules or kinds)
        for value in (bits if name == "bits" else budgets)
    ]
    settings = tuple(dict.fromkeys(form.setting for form in forms))
    expected = "cache: expected a language model, which generates with a cache of keys and values"
    require_task(model, LANGUAGE, expected)
    loaded = load(
        model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, processor=processor
    )
    if loaded.task not in LANGUAGE:
        kind = type(loaded.module).__name__
        raise InputError(f"{expected}, got {kind} ({loaded.task}). Nothing was read.")
    inputs = open_inputs(loaded, data, batch_size=batch_size, **reading).first(limit)
    first = next(iter(inputs.batches(0, 1))).kwargs.get("input_ids")
    if first is not None:
        forms = [suited(form, first.shape[1]) for form in forms]
    trials = try_caches(loaded, inputs, forms, step=step, progress=progress)
    best = smallest(trials, max_kl)
    document = {
        "trials": [trial.json() for trial in trials],
        "recommended": None if best is None else best.json(),
        "max_kl": max_kl,
        "n_texts": len(inputs),
    }
    return CacheComparison(document, trials, best, settings)


def cache_kinds() -> dict[str, Any]:
    """Return the cache methods of the compress family by their words, with their size parameter."""
    members = [getattr(compress, name) for name in compress.__all__]
    kinds = [x for x in members if isinstance(x, type) and issubclass(x, CacheRule | CachePacking)]
    return {
        getattr(kind, "word", snake_case(kind.__name__)): (kind, name)
        for kind in kinds
        for name in ("budget", "bits", "keep")
        if name in getattr(kind, "__dataclass_fields__", ())
    }
