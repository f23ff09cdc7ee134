"""``sonde.limit_attention``: find the layers of a model that need distant tokens."""

from collections.abc import Sequence
from typing import Any

from sonde.core.errors import InputError
from sonde.core.renaming import renamed
from sonde.core.wording import plural
from sonde.data import open_inputs
from sonde.edit import LimitAttention
from sonde.run.changing.acting import Change
from sonde.run.changing.attention_costs import ALL, PatternCost, pattern_costs
from sonde.run.changing.edit_document import edit_document
from sonde.run.changing.edit_table import EditTable
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name

EXAMPLES, SEED = 32, 0
PORT = ":probs"


@renamed(max_kl="tolerance")
def limit_attention(
    model: Any,
    data: Any,
    pattern: str = "window:8",
    *,
    sites: str | Sequence[str] = "blocks",
    strength: float = 1.0,
    grid: tuple[int, int] | None = None,
    prefix: int = 0,
    max_kl: float = 0.01,
    limit: int = EXAMPLES,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Measure what a pattern of attention costs at each layer alone, and at all together.

    Each layer in turn attends only to the keys inside the pattern, while the other layers stay as
    they are. The cost is how far the model's answers to ``data`` move. Nothing is written. The same
    as ``sonde edit attention``.

    Parameters
    ----------
    model : str, path, Model or module
        Model, or what ``sonde.load`` takes: a folder, a name, a factory or a module.
    data : data
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    pattern : str, default="window:8"
        Where a token may attend, as in ``sonde.edit.LimitAttention``.
    sites : str or sequence of str, default="blocks"
        Attentions.
    strength : float, default=1.0
        Share of the attention outside the pattern that goes.
    grid : pair of int, optional
        Height and width in patches, for images.
    prefix : int, default=0
        Tokens before the patches that see all.
    max_kl : float, default=0.01
        Largest KL divergence, in nats, that a layer may cause without being said to need distant
        tokens.
    limit : int, default=32
        Examples to measure on, drawn from all.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.
    """
    if limit < 1:
        raise InputError(f"--limit: expected at least 1, got {limit}.")
    edit = LimitAttention(pattern, grid, prefix, strength=strength)
    opened = load(model, device=device)
    whole = open_inputs(opened, data, **reading)
    inputs = whole if len(whole) <= limit else whole.drawn(limit, SEED)
    named = sites.split(",") if isinstance(sites, str) else sites
    ports = [site if ":" in site else site + PORT for site in named]
    costs = pattern_costs(opened, inputs, edit, ports, progress=progress)
    layers = [cost for cost in costs if cost.site != ALL]
    far = [cost for cost in layers if cost.is_far(max_kl)]
    document = edit_document(
        "attention",
        None,
        model=opened.name,
        method=f"LimitAttention({pattern!r}), strength {strength:g}",
        places=[cost.site for cost in layers],
        target=f"answers to {data_name(data)}, {plural(len(inputs), 'example')}",
        neutral=data_name(data),
        tables=[_table(costs, pattern, max_kl)],
        notes=[_verdict(pattern, layers, far, costs[-1])],
    )
    return Change(document)


def _table(costs: Sequence[PatternCost], pattern: str, tolerance: float) -> EditTable:
    rows = tuple(
        (
            cost.site.removesuffix(PORT),
            cost.kl.value,
            cost.kl.se,
            None if cost.loss is None else cost.loss.value,
            cost.outside,
            "" if cost.site == ALL else "far" if cost.is_far(tolerance) else "near",
        )
        for cost in costs
    )
    title = (
        f"Cost of {pattern} at each layer alone: divergence of the answers and its standard "
        "error, rise of the cross-entropy (both in nats per answer), and the fraction of "
        "attention outside the pattern. A layer needs attention beyond the pattern if the "
        f"divergence exceeds {tolerance:g} nats by two standard errors"
    )
    return EditTable(title, ("layer", "KL", "se", "loss", "outside", "looks"), rows)


def _verdict(
    pattern: str,
    layers: list[PatternCost],
    far: list[PatternCost],
    together: PatternCost,
) -> str:
    """Return a sentence that names the layers that need more attention than the pattern allows."""
    whole = (
        f"limiting all {plural(len(layers), 'layer')} together costs {together.kl.value:.2g} nats"
        if len(layers) > 1
        else ""
    )
    if not far:
        worst = max(layers, key=lambda cost: cost.kl.value)
        words = (
            f"No layer clearly needs attention beyond {pattern}: limiting a single layer "
            "costs at most "
        )
        return words + f"{worst.kl.value:.3g} nats" + (f" ({whole})." if whole else ".")
    names = _short([cost.site for cost in layers])
    order = sorted(far, key=lambda cost: -cost.kl.value)
    shown = ", ".join(f"{names[c.site]} ({c.kl.value:.2g})" for c in order[:3])
    more = f" and {len(order) - 3} more" if len(order) > 3 else ""
    need = "needs" if len(far) == 1 else "need"
    words = f"{len(far)} of {plural(len(layers), 'layer')} {need} attention beyond {pattern}: "
    words += f"{shown}{more}"
    return words + (f"; {whole}." if whole else " nats.")


def _short(sites: list[str]) -> dict[str, str]:
    """Return the parts of each site's name that differ between the sites."""
    parts = [site.removesuffix(PORT).split(".") for site in sites]
    differs = [len({*column}) > 1 for column in zip(*parts, strict=False)]
    if len({len(part) for part in parts}) > 1 or sum(differs) != 1:
        return {site: site.removesuffix(PORT) for site in sites}
    i = differs.index(True)
    return {
        site: ".".join(part[max(0, i - 1) : i + 1]) for site, part in zip(sites, parts, strict=True)
    }
