"""The document of a compression: what the smaller model gained and lost."""

from typing import Any

from sonde.core.chart import Chart, ChartAxis, bars
from sonde.report._fit import tip
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Command, Document, Figure, Part, Section, Table

MIB = 2**20
LEFT = 0.02
"""Fraction of the weights from which on the layers that kept their size are named."""
UNPACKABLE = ("bit", "signs")
"""Words in the forms of weights that a layer unpacks at each use."""


def document(found: dict[str, Any]) -> Document:
    """Return a compression as a document.

    Parameters
    ----------
    found : dict
        JSON of a compression, ``sonde-compress/1``.
    """
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", shown(found["data"], 120)),
        ("method", shown(found["method"], 200)),
        ("compressed", plural(found["layers"], "layer")),
        ("unchanged in size", _kept_words(found)),
        ("calibrated on", plural(found["calibrated_on"], "example")),
        ("compared on", f"{found['compared_on']:,} others"),
        ("written to", shown(found["output"], 200)),
    ]
    return Document(
        "compress",
        "What the smaller model gained and cost",
        _verdict(found),
        facts,
        [_answers(found), _inside(found), _bytes(found), _time(found), _tried(found), _undo(found)],
        subject=f"compress {shown(found['model'], 80)}",
    )


def mib(n_bytes: int) -> str:
    """Return bytes in MiB."""
    return f"{n_bytes / MIB:.2f} MiB"


def _verdict(found: dict[str, Any]) -> str:
    """Return a sentence on the compressed weights, the gain, and the changed answers."""
    gains = [
        f"{what} {_times(found[key][0], found[key][1], 'smaller', 'larger')}"
        for what, key in (("files", "bytes"), ("memory", "memory"))
    ]
    gains[1] += f" than as opened ({found['opened_in']})" if "as before" not in gains[1] else ""
    gains += [f"{one['what']} {_speed(one)}" for one in found["times"]]
    fidelity = found["fidelity"]
    changed = f"{share(fidelity['changed'])} of {fidelity['n']:,}"
    if _is_vector(fidelity):
        cosine = f"1 - cosine of old and new vectors {number(1 - fidelity['cosine'])}"
        words = f"{cosine}, the nearest example changed on {changed}"
    else:
        words = f"the answer changed on {changed}"
    return f"{_covered(found)}{_left(found)}{', '.join(gains)}; {words}"


def _covered(found: dict[str, Any]) -> str:
    """Return which part of the weights was compressed, what remains, and how to compress more."""
    covered = found.get("covered")
    if not covered:
        return ""
    total = max(covered["of"], 1)
    words = f"{share(covered['bytes'] / total)} of the weights compressed "
    words += f"({mib(covered['bytes'])} of {mib(covered['of'])})"
    left: dict[str, int] = {}
    for one in found["kept"]:
        left[one["holds"]] = left.get(one["holds"], 0) + one["bytes"]
    large = sorted((n, what) for what, n in left.items() if n >= LEFT * total)[::-1]
    if large:
        named = ", ".join(f"{shown(what, 40)} {share(n / total)}" for n, what in large[:3])
        ways = [
            f"{found['nameable'][what]} compresses {what}s"
            for _, what in large
            if what in found["nameable"]
        ]
        words += f", not compressed: {named}" + (f" ({', '.join(ways)})" if ways else "")
    return f"{words}; "


def _left(found: dict[str, Any]) -> str:
    """Return how many channels were removed, and how many weights are left, if fewer are."""
    figures, (before, after) = found["figures"], found.get("numbers", (0, 0))
    if after >= before:
        return ""
    removed = ""
    if figures.get("of_units"):
        units = f"{figures['units']:,.0f} of {figures['of_units']:,.0f}"
        part = share(figures["units"] / figures["of_units"])
        removed = f"{part} of the channels, neurons and heads removed ({units}), which leaves "
    left = f"{share(after / before)} of the weights ({after:,} of {before:,})"
    return f"{removed}{left}; " if removed else f"{left} left; "


def _is_vector(told: dict[str, Any]) -> bool:
    """Return whether the models return vectors, which are compared by their cosine."""
    return told.get("cosine") is not None


def _speed(one: dict[str, Any]) -> str:
    """Return the speed of the smaller model, unless the timings are inconclusive."""
    low, high = one["ratio_range"]
    if low <= 1 <= high:
        return "no difference detected"
    return _times(one["ratio"], 1.0, "as fast", "as slow")


def _times(before: float, after: float, gain: str, loss: str) -> str:
    ratio = before / max(after, 1e-12)
    if 0.95 <= ratio <= 1.05:
        return "as before"
    return f"{ratio:.1f} x {gain}" if ratio > 1 else f"{1 / ratio:.1f} x {loss}"


def _kept_words(found: dict[str, Any]) -> str:
    """Return the modules that kept their size."""
    kept = found["kept"]
    total = mib(sum(one["bytes"] for one in kept))
    named = ", ".join(f"{shown(one['layer'], 60)} ({one['kind']})" for one in kept[:3])
    more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
    return f"{total} in memory: {named}{more}" if kept else "nothing: all weights were compressed"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval: one group of examples"
    return f"95 % interval {number(low)} to {number(high)}"


def _answers(found: dict[str, Any]) -> Section:
    fidelity = found["fidelity"]
    if _is_vector(fidelity):
        return _vectors(fidelity)
    rows = (
        (
            "KL, mean",
            f"{number(fidelity['kl'])} nats",
            _interval(fidelity["kl_low"], fidelity["kl_high"]),
        ),
        (
            "KL, 99 % quantile",
            f"{number(fidelity['kl_99'])} nats",
            "exceeded by one answer in a hundred",
        ),
        (
            "another answer",
            share(fidelity["changed"]),
            "fraction of answers whose most likely class changed",
        ),
        (
            "correct to wrong",
            share(fidelity["right_to_wrong"]),
            "of answers whose correct label is known",
        ),
        (
            "wrong to correct",
            share(fidelity["wrong_to_right"]),
            "of answers whose correct label is known",
        ),
    )
    lead = (
        f"{plural(fidelity['n'], 'answer')} of both models on examples that were not used for "
        "calibration. "
        "Accuracy can stay while answers change, so read the divergence first."
    )
    table = Table(Numbers(("figure", "value", "meaning"), rows, "answers"))
    return Section("answers", "Answers", [table], lead)


def _vectors(told: dict[str, Any]) -> Section:
    """Return the change of the vectors of a model without classes."""
    mean, low, high, least = (
        None if told[key] is None else 1 - told[key]
        for key in ("cosine", "cosine_high", "cosine_low", "cosine_5")
    )
    rows = (
        ("1 - cosine, mean", number(mean), _interval(low, high)),
        ("1 - cosine, 95 % quantile", number(least), "exceeded by one vector in twenty"),
        (
            "another neighbour",
            share(told["changed"]),
            "fraction of vectors whose nearest neighbour changed",
        ),
    )
    lead = f"{told['n']:,} vectors of both models, the mean of an example's states over its real "
    lead += "tokens, on examples that were not used for calibration."
    table = Table(Numbers(("figure", "value", "meaning"), rows, "answers"))
    return Section("answers", "Answers", [table], lead)


def _inside(found: dict[str, Any]) -> Section | None:
    sites = found["sites"]
    if not sites:
        return None
    columns = ("site", "rows", "error", "cosine, mean", "cosine, 5 %", "CKA")
    keys = ("site", "n", "error", "cosine", "cosine_5", "cka")
    numbers = Numbers(columns, tuple(tuple(one[key] for key in keys) for one in sites), "sites")
    worst = max(sites, key=lambda one: one["error"] or 0.0)
    message = (
        f"States changed most at {shown(worst['site'], 60)}: {share(worst['error'])} of their "
        "squared length"
    )

    def draw(width: int) -> Chart:
        axis = Axis.of([one["site"] for one in sites], 48 if width > 400 else 24)
        rows = [
            {"s": axis.names[one["site"]], "error": one["error"],
             "tip": tip(one["site"], f"error {share(one['error'])}")}
            for one in sites if one["site"] in axis.names
        ]  # fmt: skip
        return bars(message, rows, axis.across(), ChartAxis("error", share=True, zero=True))

    lead = (
        "All layers are compressed at once, so errors of earlier sites are included in those "
        "of later ones. Error: squared difference over squared length. CKA near 1: the same "
        "geometry."
    )
    picture = Picture("inside-errors", message, draw, numbers)
    return Section("inside", "Inside", [Figure(picture, most=8)], lead)


def _bytes(found: dict[str, Any]) -> Section:
    rows = tuple(
        (what, *map(mib, found[key]))
        for what, key in (("weights on disk", "bytes"), ("in memory", "memory"))
    )
    parts: list[Part] = [Table(Numbers(("what", "before", "after"), rows, "bytes"))]
    keys = ("layer", "form", "numbers", "bytes", "bits")
    packed = tuple(tuple(one[key] for key in keys) for one in found["packed"])
    if packed:
        columns = ("layer", "form", "weights", "bytes in files", "bits of a weight")
        numbers = Numbers(columns, packed, "packed")
        parts.append(Table(numbers, "Compressed layers", folded=True, where="verbose"))
    kept = tuple((one["layer"], one["kind"], one["bytes"]) for one in found["kept"])
    if kept:
        numbers = Numbers(("layer", "kind", "bytes"), kept, "kept")
        parts.append(Table(numbers, "Layers that kept their size", folded=True, where="verbose"))
    lead = (
        "Bits per weight include scales, offsets and the positions of zeros. Zeros are packed "
        "only in files: in memory a pruned layer keeps its size. Memory is the size of the "
        "model's tensors."
    )
    return Section("bytes", "Bytes", parts, lead)


def _time(found: dict[str, Any]) -> Section:
    rows = tuple(
        (
            one["what"],
            one["ratio"],
            *one["ratio_range"],
            *one["before"],
            *one["after"],
            *one["first"],
        )
        for one in found["times"]
    )
    columns = ("input", "x as fast", "from", "to")
    columns += tuple(
        f"{side}, {part}, s" for side in ("before", "after") for part in ("median", "low", "high")
    )
    columns += ("first run before, s", "first run after, s")
    brief = (*columns[:5], columns[7])
    runs = ", ".join(f"{one['runs']} runs" for one in found["times"][:1])
    threads = plural(found["times"][0]["threads"], "thread") if found["times"] else ""
    clock = (
        "processor time"
        if found["times"] and found["times"][0]["clock"] == "process"
        else ("wall time")
    )
    lead = f"Median of {runs} of each model in turn, {threads}, {clock}. The ratio is the median "
    lead += "over pairs of runs with its 95 % interval; if it includes 1, no difference is "
    lead += "detected. Low and high are the 2.5 and "
    lead += "97.5 % quantiles; first runs are not counted. Kernels for packed weights here: "
    lead += f"{', '.join(found['kernels'])}; each layer uses the fastest."
    lead += _way_out(found)
    if not rows:
        return Section("time", "Time", [], "The speed was not measured (--no-timing).")
    table = Table(Numbers(columns, rows, "times"), brief=brief)
    return Section("time", "Time", [table], lead)


def _way_out(found: dict[str, Any]) -> str:
    """Return on which inputs the smaller model is slower, and how to unpack its weights."""
    slower = [
        one["what"] for one in found["times"] if one["ratio"] < 0.95 and one["ratio_range"][1] < 1
    ]
    held = [one for one in found["packed"] if any(word in one["form"] for word in UNPACKABLE)]
    if not slower or not held:
        return ""
    return (
        f" Here the smaller model is slower than the original on {' and '.join(slower)}. If "
        "time matters more than memory, sonde.weights.unpacked(model) runs the same weights as "
        f"plain layers and needs the memory of the original, {mib(found['memory'][0])}."
    )


def _tried(found: dict[str, Any]) -> Section | None:
    keys = ("size", "group", "method", "bytes", "kl")
    rows = tuple(tuple(one[key] for key in keys) for one in found["tried"])
    loss = "1 - cosine" if _is_vector(found["fidelity"]) else "KL"
    columns = ("size", "group", "method", "bytes, about", loss)
    tables = [Table(Numbers(columns, rows, "tried"))]
    return Section("tried", "What was tried", tables) if rows else None


def _undo(found: dict[str, Any]) -> Section:
    lead = (
        "The original tensors are kept in a folder beside the new model; every file of the old "
        "model can be restored with the same hash."
    )
    return Section("undo", "Undo", [Command(found["undo"])], lead)
