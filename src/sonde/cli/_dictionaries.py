"""Output of ``sonde fit`` on a dictionary: sparsity, dead features and fidelity."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sonde.core.errors import SondeError
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.core.stream import Stream


def dictionary_healths(
    results: Mapping[tuple[str, str], Result], stream: Stream, model: Any, data: str | None
) -> list[dict[str, Any]]:
    """Return the health of each dictionary: its errors, active and dead features, and the loss.

    The loss is None without a live model, or if every split of the data was used for the fit.
    """
    from sonde.explain import Dictionary
    from sonde.run.explaining.dictionary_health import loss_recovered

    dictionaries = [
        (key, dictionary)
        for key, dictionary in results.items()
        if isinstance(dictionary, Dictionary)
    ]
    held = _held_out(stream, model, data) if dictionaries and isinstance(model, Model) else None
    rows: list[dict[str, Any]] = []
    for (method, place), dictionary in dictionaries:
        site, loss = place.partition("|")[0], None
        if held is not None and " & " not in place:
            recovered = loss_recovered(model, held.inputs, dictionary, site)
            loss = None if recovered is None else recovered.json()
        rows.append(
            {
                "method": method,
                "site": site,
                "active": dictionary.l0,
                "dead": dictionary.dead_share,
                "unexplained": float(dictionary.value),
                "components": dictionary.conventions.get("unexplained by components"),
                "loss": loss,
            }
        )
    return rows


def _held_out(stream: Stream, model: Model, data: str | None) -> Any:
    """Return some examples of a split that was not read, or None if no other split fits."""
    from sonde.data.splits import FIRST
    from sonde.run.reading.notes import items_of, split_of
    from sonde.run.reading.read import read
    from sonde.tap import LiveStream

    inputs = items_of(stream)
    source = None if inputs is None else inputs.source
    if source is None or data is None or source.split is None:
        return None
    other = next((s for s in FIRST if s in source.other_splits), None)
    name = data.removesuffix(source.split).rstrip("/:")
    try:
        held = None if other is None else read(model, name, split=other)
    except SondeError:  # a split that does not belong to this model
        return None
    fits = isinstance(held, LiveStream) and split_of(held) == other
    return held if fits else None


def health_texts(healths: list[dict[str, Any]], output: Path, model: str) -> Iterator[str]:
    """Yield a sentence for each dictionary."""
    from sonde.core.wording import plural
    from sonde.report.units import loss_text

    for row in healths:
        text = (
            f"{row['method']} at {row['site']}: {row['active']:.3g} features are active in a row, "
            f"{100 * row['dead']:.3g}% in none; {100 * row['unexplained']:.3g}% of the variance of "
            "held-out groups is unexplained"
        )
        if row["components"] is not None:
            text += f" (by as many principal components: {100 * row['components']:.3g}%)"
        loss = row["loss"]
        if loss is None:
            yield (
                f"{text}; sonde units {model} UNSEEN --sites {row['site']} --dictionary {output} "
                "says how much of the loss it recovers"
            )
        else:
            yield f"{text}; {loss_text(loss)} on {plural(loss['n'], 'example')} held out"
