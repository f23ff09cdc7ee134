"""What a smaller model gained and cost, as one page."""

from pathlib import Path
from typing import Any

from sonde.core.chart import Chart, ChartAxis, bars
from sonde.report._fit import tip
from sonde.report._format import number, plural, share, shown
from sonde.report._markup import ElementIds
from sonde.report._parts import command, figure, table, tabled
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.compress_terminal import (
    compress_verdict,
    interval_words,
    kept_sentence,
    mib,
    time_words,
)
from sonde.report.document import Head, Section, document_page, save_document


def compress_to_html(found: dict[str, Any]) -> str:
    """Return a compression as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a compression, ``sonde-compress/1``.
    """
    names = ElementIds()
    parts = [
        _answers(found, names),
        _inside(found, names),
        _bytes(found, names),
        _time(found, names),
        _tried(found, names),
        _undo(found),
    ]
    return document_page(found, _head(found), parts)


def save_compress(found: dict[str, Any], path: str | Path) -> Path:
    """Write a compression as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, compress_to_html, "save_compress")


def _head(found: dict[str, Any]) -> Head:
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", shown(found["data"], 120)),
        ("method", shown(found["method"], 200)),
        ("packed", plural(found["layers"], "layer")),
        ("not packed", kept_sentence(found)),
        ("calibrated on", plural(found["calibrated_on"], "example")),
        ("compared on", f"{found['compared_on']:,} others"),
        ("written to", shown(found["output"], 200)),
    ]
    return Head(
        "compress",
        "What the smaller model gained and cost",
        compress_verdict(found),
        facts,
        subject=f"compress {shown(found['model'], 80)}",
    )


def _answers(found: dict[str, Any], names: ElementIds) -> Section:
    told = found["fidelity"]
    rows = (
        ("KL, mean", f"{number(told['kl'])} nats", interval_words(told)),
        ("KL, 99 % quantile", f"{number(told['kl_99'])} nats", "one answer in a hundred has more"),
        ("another answer", share(told["changed"]), "the most likely class is another"),
        ("right to wrong", share(told["right_to_wrong"]), "of answers whose truth is known"),
        ("wrong to right", share(told["wrong_to_right"]), "of answers whose truth is known"),
    )
    lead = f"{told['n']:,} answers of both models on examples that calibrated nothing. Accuracy "
    lead += "can stay while answers change, so read the divergence first."
    made = table(Numbers(("figure", "value", "meaning"), rows, "answers"), names)
    return Section("answers", "Answers", [made], lead)


def _inside(found: dict[str, Any], names: ElementIds) -> Section | None:
    sites = found["sites"]
    if not sites:
        return None
    columns = ("site", "rows", "error", "cosine, mean", "cosine, 5 %", "CKA")
    keys = ("site", "n", "error", "cosine", "cosine_5", "cka")
    numbers = Numbers(columns, tuple(tuple(one[key] for key in keys) for one in sites), "sites")
    worst = max(sites, key=lambda one: one["error"] or 0.0)
    message = f"States moved most at {shown(worst['site'], 60)}: {share(worst['error'])} of their "
    message += "squared length"

    def draw(width: int) -> Chart:
        axis = Axis.of([one["site"] for one in sites], 48 if width > 400 else 24)
        rows = [
            {"s": axis.names[one["site"]], "error": one["error"],
             "tip": tip(one["site"], f"error {share(one['error'])}")}
            for one in sites if one["site"] in axis.names
        ]  # fmt: skip
        return bars(message, rows, axis.across(), ChartAxis("error", share=True, zero=True))

    picture = Picture("inside-errors", message, draw, numbers)
    lead = "All layers are compressed at once, so errors of earlier sites are in those of later "
    lead += "ones. Error: squared difference over squared length. CKA near 1: the same geometry."
    return Section("inside", "Inside", [figure(picture, names)], lead)


def _bytes(found: dict[str, Any], names: ElementIds) -> Section:
    rows = tuple(
        (what, *map(mib, found[key]))
        for what, key in (("weights on disk", "bytes"), ("in memory", "memory"))
    )
    parts = [table(Numbers(("what", "before", "after"), rows, "bytes"), names)]
    keys = ("layer", "form", "numbers", "bytes", "bits")
    packed = tuple(tuple(one[key] for key in keys) for one in found["packed"])
    if packed:
        columns = ("layer", "form", "weights", "bytes in files", "bits of a weight")
        parts.append(tabled(Numbers(columns, packed, "packed"), names, "Packed layers"))
    kept = tuple((one["layer"], one["kind"], one["bytes"]) for one in found["kept"])
    if kept:
        numbers = Numbers(("layer", "kind", "bytes"), kept, "kept")
        parts.append(tabled(numbers, names, "What kept its size"))
    lead = "Bits of a weight count scales, offsets and the bits that say where zeros are. Zeros "
    lead += (
        "are packed in files alone: in memory a pruned layer keeps its size. Memory is what the "
    )
    lead += "tensors of the model take."
    return Section("bytes", "Bytes", parts, lead)


def _time(found: dict[str, Any], names: ElementIds) -> Section:
    rows = tuple(
        (one["what"], one["ratio"], *one["before"], *one["after"], *one["first"])
        for one in found["times"]
    )
    columns = ("input", "x as fast")
    columns += tuple(
        f"{side}, {part}, s" for side in ("before", "after") for part in ("median", "low", "high")
    )
    columns += ("first run before, s", "first run after, s")
    told = ". ".join(time_words(one) for one in found["times"])
    lead = f"{told}. Low and high are the 2.5 and 97.5 % quantiles; first runs are not counted."
    return Section("time", "Time", [table(Numbers(columns, rows, "times"), names)], lead)


def _tried(found: dict[str, Any], names: ElementIds) -> Section | None:
    keys = ("bits", "group", "method", "bytes", "kl")
    rows = tuple(tuple(one[key] for key in keys) for one in found["tried"])
    columns = ("bits", "group", "method", "bytes, about", "KL")
    made = [table(Numbers(columns, rows, "tried"), names)]
    return Section("tried", "What was tried", made) if rows else None


def _undo(found: dict[str, Any]) -> Section:
    lead = "The original tensors lie in a folder beside the new model; every file of the old one "
    lead += "comes back with the same hash."
    return Section("undo", "Take it back", [command(found["undo"])], lead)
