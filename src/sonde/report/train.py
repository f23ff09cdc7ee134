"""The document of a fine-tuning run with losses or layers at sites."""

from statistics import fmean
from typing import Any

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.report._fit import tip
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Command, Document, Figure, Section, Table

SCOPES = {"all": "all parameters", "norms": "the norms", "layers": "the inserted layers"}


def document(found: dict[str, Any]) -> Document:
    """Return a fine-tuning run as a document: losses, and gain of the task.

    Parameters
    ----------
    found : dict
        JSON of a fine-tuning, ``sonde-train/1``.
    """
    recipe = found["recipe"]
    losses = [
        ("losses", shown(found["terms_typed"], 200)),
        ("at", shown(", ".join(found["sites_typed"]), 200)),
        ("weight", _weights(recipe["weight"])),
    ]
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", shown(found["data"], 120)),
        *(losses if found["terms"] else []),
        *([("layers", shown(", ".join(found["inserted"]), 200))] if found["inserted"] else []),
        ("trained", " and ".join(SCOPES.get(w, w) for w in str(recipe["scope"]).split("+"))),
        ("trained on", plural(found["trained_on"], "example")),
        ("epochs, rate", f"{recipe['epochs']}, {recipe['rate']:g}"),
        ("seeds", str(len(found["seeds"]))),
        ("figures on", f"{plural(found['held'], 'other example')}"),
        ("written to", shown(found["output"], 200)),
    ]
    verdict = _layers_helped(found) if found["inserted"] else _helped(found)
    sections = [_task(found), _layers(found), _terms(found), _curves(found), _inside(found)]
    return Document(
        "train",
        f"Effects of the {' and '.join(_what(found))} on the sites",
        " ".join([verdict, _worked(found)] if found["inserted"] else [_worked(found), verdict]),
        facts,
        [*sections, _undo(found)],
        subject=f"train {shown(found['model'], 80)}",
    )


def _weights(given: float | list[float]) -> str:
    """Return one weight for all losses, or the weight of each."""
    return ", ".join(map(number, given if isinstance(given, list | tuple) else [given]))


def _what(found: dict[str, Any]) -> list[str]:
    """Return the difference between the two arms."""
    return ["layers"] * bool(found["inserted"]) + ["losses"] * bool(found["terms"])


def _task(found: dict[str, Any]) -> Section:
    rows, what = [], " and ".join(_what(found))
    for arm in _arms(found):
        figures = _figures_of_arm(found, arm)
        rows.append(
            (
                {"with": f"trained with the {what}", "without": "trained without them"}.get(
                    arm, "before"
                ),
                *(figures["accuracy"][key] for key in ("value", "low", "high")),
                *(figures["loss"][key] for key in ("value", "low", "high")),
            )
        )
    columns = ("model", "accuracy", "low", "high", "loss, nats", "low ", "high ")
    kinds = {"accuracy": "share", "low": "share", "high": "share"}
    parts = [Table(Numbers(columns, tuple(rows), "task"), kinds=kinds)]
    gains = tuple(
        (n, *(seed["gain"][name][key] for name in ("accuracy", "loss")
              for key in ("value", "low", "high")))
        for n, seed in enumerate(found["seeds"])
    )  # fmt: skip
    columns = ("seed", "accuracy gained", "low", "high", "loss gained, nats", "low ", "high ")
    numbers = Numbers(columns, gains, "gains")
    parts.append(
        Table(numbers, "Accuracy with minus without, by seed", folded=True, where="verbose")
    )
    lead = f"{plural(found['answers'], 'answer')} on examples that were not used for training. "
    if "without" in _arms(found):
        lead += "Both training runs used the same rows in the same order. "
        if (n := _instead(found)) is not None:
            lead += (
                f"The training run without layers trained at least the model's last {n:,} "
                "parameters. "
            )
    elif found["recipe"]["scope"] == "layers":
        lead += "Only the new layers were trained; they are compared with the original model. "
    lead += (
        "Intervals: 95 %, by resampling groups of examples; they do not include the variation "
        "between runs in another order, which needs several seeds."
    )
    return Section("task", "The task", parts, lead)


def _layers(found: dict[str, Any]) -> Section | None:
    rows = tuple(
        (one["layer"], shown(one["site"], 60), one["n_parameters"], one["share"], one["moved"])
        for one in found["layers"]
    )
    columns = ("layer", "behind", "parameters", "of all", "moves states by")
    kinds = {"of all": "share", "moves states by": "share"}
    lead = "How much a layer changes the states at its site: root mean square of its output "
    lead += "minus its input, over that of its input, on held-out examples."
    table = Table(Numbers(columns, rows, "layers"), kinds=kinds)
    return Section("layers", "The layers", [table], lead) if rows else None


def _terms(found: dict[str, Any]) -> Section | None:
    rows = tuple(
        (shown(one["term"], 80), one["before"], one["without"], one["with"])
        for one in found["terms"]
    )
    columns = ("loss", "before", "trained without it", "trained with it")
    parts = [Table(Numbers(columns, rows, "terms"))] if rows else []
    lead = (
        "Values on all held-out rows together; lower is better for each loss. A lower loss "
        "shows that "
    )
    lead += "it was optimised; the task shows whether it helped."
    for one in found.get("left_out", ()):
        lead += f" {plural(one['steps'], 'batch', 'batches')} of {one['of']:,} had too few rows or "
        lead += f"classes for {shown(one['term'], 80)}: these steps trained only the task."
    if found["conflict"]:
        cosines = ", ".join(number(x, 2) for x in found["conflict"])
        lead += (
            f" Cosine of the gradients of task and losses at the start of each epoch: {cosines} "
        )
        lead += "(below 0 they conflict)."
    return Section("losses", "The losses", parts, lead) if parts else None


def _curves(found: dict[str, Any]) -> Section:
    wanted = ["task", *(name for name in found["curves"]["with"][0] if name.endswith(")"))]
    parts = [_curve(found, name, n) for n, name in enumerate(wanted)]
    lead = "Values on the batch of each step."
    return Section("curves", "Over the training run", parts, lead, where="verbose")


def _curve(found: dict[str, Any], name: str, n: int) -> Figure:
    what = "The loss of the task, nats" if name == "task" else f"{shown(name, 60)}"
    rows = [
        {"step": row["step"], "value": row[name], "arm": arm}
        for arm, curve in found["curves"].items()
        for row in curve
        if name in row
    ]
    last = rows[-1]["value"]
    message = f"{what}: {number(rows[0]['value'])} at the start, {number(last)} at the end"

    def draw(width: int) -> Chart:
        return curves(message, rows, "step", "value", by="arm", dots=False)

    table_rows = tuple((row["arm"], row["step"], row["value"]) for row in rows)
    numbers = Numbers(("arm", "step", "value"), table_rows, f"curve-{n}")
    return Figure(Picture(f"curve-{n}", message, draw, numbers))


def _inside(found: dict[str, Any]) -> Section | None:
    rows = [
        {"site": one["site"], "cka": one["cka"], "arm": arm, "n": one["n"], "error": one["error"]}
        for arm, sites in found["sites"].items()
        for one in sites
    ]
    if not rows:
        return None
    worst = min(rows, key=lambda row: row["cka"] if row["cka"] is not None else 2)
    message = (
        f"States changed most at {shown(worst['site'], 60)} {worst['arm']} the "
        f"{' and '.join(_what(found))}: CKA with those before {number(worst['cka'])}"
    )

    def draw(width: int) -> Chart:
        axis = Axis.of(list(dict.fromkeys(row["site"] for row in rows)), 48 if width > 400 else 24)
        shown_rows = [
            {"s": axis.names[row["site"]], "cka": row["cka"], "arm": row["arm"],
             "tip": tip(row["site"], f"CKA {number(row['cka'])}")}
            for row in rows if row["site"] in axis.names
        ]  # fmt: skip
        return curves(message, shown_rows, axis.across(), ChartAxis("cka"), by="arm")

    columns = ("site", "arm", "rows", "error", "CKA")
    cells = tuple((r["site"], r["arm"], r["n"], r["error"], r["cka"]) for r in rows)
    picture = Picture("inside", message, draw, Numbers(columns, cells, "inside"))
    lead = (
        "The states of each training run compared with those before training, on held-out "
        "examples. Error: squared difference over squared length."
    )
    return Section("inside", "Inside", [Figure(picture, most=8)], lead)


def _undo(found: dict[str, Any]) -> Section:
    lead = "The original tensors are kept in a folder beside the new model."
    return Section("undo", "Undo", [Command(found["undo"])], lead)


def _arms(found: dict[str, Any]) -> list[str]:
    """Return the names of the arms: before, without and with."""
    return ["before", *(name for name in ("without", "with") if name in found["seeds"][0])]


def _figures_of_arm(found: dict[str, Any], arm: str) -> dict[str, Any]:
    """Return accuracy and loss of one arm with the first seed."""
    return found["before"] if arm == "before" else found["seeds"][0][arm]


def _worked(found: dict[str, Any]) -> str:
    parts = []
    for one in found["terms"]:
        name = shown(one["term"], 60)
        if one["without"] is None:
            before, after = number(one["before"]), number(one["with"])
            fell = "fell" if one["with"] < one["before"] else "did not fall"
            moved = "did not change" if before == after else fell
            parts.append(f"{name} {moved}: {before} to {after}")
        else:
            words = f"{number(one['with'])} with it, {number(one['without'])} without"
            parts.append(f"{name} {_moved(one, len(found['seeds']))}: {words}")
    return f"{'; '.join(parts)}." if parts else ""


def _instead(found: dict[str, Any]) -> int | None:
    """Return how many of the last parameters were trained in the arm without layers."""
    word, _, n = (found.get("scope_without") or "").partition("+")[0].partition(":")
    return int(n) if word == "last" and found["inserted"] else None


def _layers_helped(found: dict[str, Any]) -> str:
    """Return whether the inserted layers, and losses that were trained with them, helped."""
    every = [f"{one['layer']} at {shown(one['site'], 60)}" for one in found["layers"]]
    named = every[-len(found["inserted"]) :]  # others were there before
    who = " and ".join(named) + ", with losses," * bool(found["terms"])
    right, loss = found["gain"]["accuracy"], found["gain"]["loss"]
    names = _arms(found)[-2:]
    before, after = (share(_mean(found, arm, "accuracy")) for arm in names)
    word = "them" if named[1:] or found["terms"] else "it"
    instead = _instead(found) is not None and "without" in names
    against = "with equally many other parameters trained instead" if instead else f"without {word}"
    words = f"{after} of the answers are correct with {word}, {before} {against} "
    words += f"({_points(right['low'])} to {_points(right['high'])} percentage points)"
    if len(found["seeds"]) == 1 and "without" in names:
        return f"A single seed cannot show whether {who} helped: {words}. Repeat with --seeds 5."
    if _is_change(right):
        return f"{who} {'helped' if right['low'] > 0 else 'did harm'}: {words}."
    low, high = (number(_mean(found, arm, "loss")) for arm in names)
    moved = "did not change significantly either"
    if loss["high"] < 0 or loss["low"] > 0:
        moved = f"{'fell' if loss['high'] < 0 else 'rose'} from {low} to {high} nats"
    return (
        f"{who} did not change the number of correct answers significantly: {words}. The loss "
        f"{moved}."
    )


def _moved(one: dict[str, Any], n_seeds: int) -> str:
    """Return whether a loss decreased more than in the arm without it."""
    gap = one["difference"]
    if gap is None:
        if number(one["with"]) == number(one["without"]):
            return "did not move"
        return (
            "fell" if one["with"] < one["without"] else "did not fall"
        ) + " further with one seed"
    words = f"(difference {number(gap['low'])} to {number(gap['high'])} over {n_seeds} seeds)"
    if gap["high"] < 0:
        return f"worked {words}"
    return f"{'rose' if gap['low'] > 0 else 'did not move significantly'} {words}"


def _helped(found: dict[str, Any]) -> str:
    """Return whether the task gained: over seeds, by paired training runs."""
    gain, n_seeds = found["gain"]["accuracy"], len(found["seeds"])
    against = "without" if "without" in _arms(found) else "before"
    words = f"{share(_mean(found, 'with', 'accuracy'))} correct with, "
    words += f"{share(_mean(found, against, 'accuracy'))} {against}"
    if n_seeds == 1 and against == "without":
        return (
            f"A single seed cannot show whether the task gained: {words}; "
            f"{plural(gain['gained'], 'example')} gained and {gain['lost']:,} lost (p = "
            f"{number(gain['p'], 2)} by McNemar's test of these two models alone). "
            "Repeat with --seeds 5."
        )
    range_words = f"{_points(gain['low'])} to {_points(gain['high'])}"
    over = f" over {n_seeds} seeds" if n_seeds > 1 else ""
    if _is_change(gain):
        word, size = ("gained", gain["value"]) if gain["value"] > 0 else ("lost", -gain["value"])
        return f"The task {word} {_points(size)} percentage points ({range_words}{over}): {words}."
    seen = ""
    if "detects" in gain:
        seen = f"; a change of {_points(gain['detects'])} would show in 4 of 5 such comparisons"
    return (
        f"The task did not change significantly ({range_words} percentage points{over}{seen}): "
        f"{words}."
    )


def _is_change(gain: dict[str, Any]) -> bool:
    """Return whether an interval excludes 0 and, for one seed, McNemar's test agrees.

    An interval of resampled rows is too narrow where few rows changed: 4 gained and 0 lost.
    """
    return (gain["low"] > 0 or gain["high"] < 0) and gain.get("p", 0.0) < 0.05


def _mean(found: dict[str, Any], arm: str, name: str) -> float:
    """Return the accuracy or loss of an arm, averaged over seeds."""
    if arm == "before":
        return found["before"][name]["value"]
    return fmean(seed[arm][name]["value"] for seed in found["seeds"])


def _points(x: float) -> str:
    return f"{100 * x:.1f}"
