"""What can be read off at each site: labels, and the next token."""

import math
from typing import Any

import altair as alt

from sonde.report._draw import tip, x_sites
from sonde.report._format import number, share, shown
from sonde.report._picture import Axis, Numbers, Picture


def labels_picture(labels: dict[str, Any]) -> Picture | None:
    """Return held-out accuracy by depth, with the majority line and the best site ringed."""
    rules = [] if labels["majority"] is None else [("largest class", labels["majority"])]
    best = labels["best"]
    at = {row["site"]: row["value"] for row in labels["sites"]}
    last = labels["sites"][-1] if labels["sites"] else None
    message = "Labels by depth"
    if best in at and last is not None:
        message = f"Labels are read best at {shown(best, 60)}: {share(at[best])} of held-out rows"
        message += f", {share(last['value'])} at the last site" if last["site"] != best else ""
    note = "Accuracy of a closed-form classifier on held-out rows; band: 95 % interval. Dashed: always naming the largest class."
    line = _Line("labels", message, note, "accuracy", ring=best, percent=True)
    return line.picture(labels["sites"], rules, lambda row: [share(row["value"])], labels["n_rows"])


def prediction_picture(prediction: dict[str, Any]) -> Picture | None:
    """Return the next-token loss after each block, with the unigram and the final line."""
    rules = [(n, prediction[k]) for n, k in (("token frequencies", "unigram"), ("final", "final"))]
    known = [row for row in prediction["sites"] if row["value"] is not None]
    message = "Next-token loss by depth"
    if len(known) > 1:
        rises = [
            (b["value"] - a["value"], b["site"]) for a, b in zip(known, known[1:], strict=False)
        ]
        worst = max(rises)
        message = f"Next-token loss falls from {number(known[0]['value'])} to {number(known[-1]['value'])} nats"
        if known[-1]["value"] >= known[0]["value"]:
            message = message.replace("falls", "rises")
        if worst[0] > 0:
            message += f"; it rises most, by {number(worst[0])}, at {shown(worst[1], 60)}"
    note = "The model's own final norm and head after each block. Dashed: knowing only how frequent each token is, and the model's final loss."
    line = _Line("prediction", message, note, "loss_nats")

    def said(row: dict[str, Any]) -> list[str]:
        return [f"{number(row['value'])} nats", f"{number(row['value'] / math.log(2))} bits"]

    return line.picture(
        prediction["sites"], [r for r in rules if r[1] is not None], said, prediction["n_rows"]
    )


class _Line:
    """A line over sites with a band, horizontal rules and perhaps a ring."""

    def __init__(
        self,
        key: str,
        message: str,
        note: str,
        name: str,
        ring: str | None = None,
        percent: bool = False,
    ) -> None:
        self.key, self.message, self.note, self.name = key, message, note, name
        self.ring, self.percent = ring, percent

    def picture(
        self, rows: list[dict[str, Any]], rules: list[tuple[str, float]], said: Any, n: int
    ) -> Picture | None:
        """Return the picture of these rows; None if fewer than two have a value."""
        axis = Axis.of([row["site"] for row in rows])
        points = []
        for row in rows:
            if row["value"] is None or row["site"] not in axis.names:
                continue
            half = 1.96 * (row["se"] or 0.0)
            text = tip(
                row["site"],
                *said(row),
                f"se {number(row['se'])}" if row["se"] else "",
                f"n = {n:,}",
            )
            point = {"s": axis.names[row["site"]], "v": row["value"], "t": text}
            points.append(
                point
                | {
                    "lo": row["value"] - half,
                    "hi": row["value"] + half,
                    "ring": row["site"] == self.ring,
                }
            )
        if len(points) < 2:
            return None
        lines = [{"v": v, "n": n_, "t": tip(n_, number(v))} for n_, v in rules]
        table = tuple(
            (row["site"], row["value"], row["se"]) for row in rows if row["site"] in axis.names
        )
        numbers = Numbers(("site", self.name, "se"), table, self.key)
        return Picture(
            self.key,
            self.message,
            lambda width: self._chart(points, lines, axis, width),
            numbers,
            self.note,
        )

    def _chart(
        self, points: list[dict[str, Any]], rules: list[dict[str, Any]], axis: Axis, width: int
    ) -> Any:
        x = x_sites(axis.labels, width, axis.title)
        look = alt.Axis(
            title=None,
            format="~%" if self.percent else "~g",
            tickCount=5,
            minExtent=58,
            maxExtent=58,
        )
        y = alt.Y("v:Q", scale=alt.Scale(zero=True), axis=look)
        base = alt.Chart(alt.Data(values=points))
        layers = []
        if rules:
            flat = alt.Chart(alt.Data(values=rules))
            layers.append(
                flat.mark_rule(strokeDash=[5, 4], color="var(--soft)", strokeWidth=1.5).encode(
                    y=y, description="t:N"
                )
            )
            layers.append(
                flat.mark_text(align="right", baseline="bottom", dy=-4, aria=False).encode(
                    x=alt.value(width - 78), y="v:Q", text="n:N"
                )
            )
        layers += [
            base.mark_area(opacity=0.22, color="var(--c1)", aria=False).encode(
                x=x, y="lo:Q", y2="hi:Q"
            ),
            base.mark_line(color="var(--c1)", strokeWidth=2, aria=False).encode(x=x, y=y),
            base.mark_point(color="var(--c1)", filled=True, size=46, opacity=1).encode(
                x=x, y=y, description="t:N"
            ),
        ]
        ringed = [point for point in points if point["ring"]]
        if ringed:
            ring = alt.Chart(alt.Data(values=ringed)).mark_point(
                size=220, color="var(--c2)", strokeWidth=2.5, aria=False
            )
            layers.append(ring.encode(x=x, y="v:Q"))
        return alt.layer(*layers).properties(width=width - 74, height=220)
