"""Print the tables of docs/howto/choose_a_detector.md from what ``sonde study overview`` wrote.

python tools/overview_table.py reports/studies/overview.json
"""

import json
import sys
from pathlib import Path
from statistics import fmean, stdev

SHIFTS = ("mlp near", "mlp far", "cnn near", "cnn far", "mean")
CLAIMS = ("single over MSP", "single over the median", "pair over single", "null")
LEAST_P = "least p of "
COSTS = ("fit ms", "score us per row", "state bytes")
Figures = dict[str, list[float]]


def table(figures: Figures, combined: bool) -> list[str]:
    """Return a line for each detector, or combination, the best first, those of patches last."""
    names = dict.fromkeys(key.partition(" | ")[0] for key in figures if " | " in key)
    mine = [name for name in names if name.startswith(LEAST_P) == combined]
    order = sorted(mine, key=lambda name: -fmean(figures.get(f"{name} | mean", [-1.0])))
    head = [LEAST_P.strip() if combined else "detector", *SHIFTS]
    head += [] if combined else ["fit, ms", "score, us", "state, bytes"]
    lines = [head, ["---"] * len(head), *(_line(name, figures)[: len(head)] for name in order)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _line(name: str, figures: Figures) -> list[str]:
    areas = [_area(figures.get(f"{name} | {shift}")) for shift in SHIFTS]
    return [
        name.removeprefix(LEAST_P),
        *areas,
        *(_whole(figures.get(f"{name} | {cost}")) for cost in COSTS),
    ]


def _area(values: list[float] | None) -> str:
    if values is None:
        return ""
    return f"{fmean(values):.3f} +- {stdev(values):.3f}".replace("0.", ".")


def _whole(values: list[float] | None) -> str:
    return "" if values is None else f"{fmean(values):,.0f}"


def main(arguments: list[str]) -> int:
    """Print the table; 2 without a file, 1 where the study ran at tiny size."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python tools/overview_table.py overview.json\n")
        return 2
    study = json.loads(Path(arguments[0]).read_text("utf-8"))
    for combined in (False, True):
        print("\n".join(table(study["figures"], combined)) + "\n")
    for key in CLAIMS:
        values = study["figures"][key]
        print(f"{key}: {fmean(values):.3f} +- {stdev(values):.3f}")
    return int(study["tiny"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
