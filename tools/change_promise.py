"""How often ``sonde serve`` sees a change in unchanged traffic: ``python -m tools.change_promise``.

The promise is a chance of at most ``n / patience`` of an alarm within ``n`` inputs, over all
detectors together. With the patience of the server (a million) no alarm would be seen, so it is set
to 200 here. Every stream has calibration rows of its own, because the chance is over both. First
one detector, with calibrations of several sizes and scores with ties; then everything that is
watched of a table of two columns: two detectors, confidence, classes, refusals and values.
"""

import argparse
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from sonde.serving.changes import Changes, Seen
from sonde.serving.verdicts import Verdict
from sonde.serving.watched_scores import WatchedScores
from sonde.stats.intervals import clopper_pearson

PATIENCE, WITHIN, LONGEST = 200, (20, 100), 4000
CALIBRATED, CLASSES = (0, 19, 50, 200), (2, 10, 100)
HEADER = {"calibrations": [{"n_examples": 9, "columns": {"age": (0.0, 1.0), "visits": (2.0, 1.0)}}]}
Draw = Callable[[np.random.Generator, int], np.ndarray]
SCORES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "three values": lambda rng, n: rng.choice([0.0, 1.0, 2.0], n, p=[0.6, 0.3, 0.1]),
    "one value in 90 %": lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.normal(size=n)),
    "one value": lambda _, n: np.zeros(n),
    "infinite in 5 %": lambda rng, n: np.where(rng.random(n) < 0.05, np.inf, rng.normal(size=n)),
}


def one_detector(draw: Draw, n_calibrated: int, seed: int) -> int:
    """Return the number of scores up to the first alarm, at most ``LONGEST``."""
    rng = np.random.default_rng([seed, 1])  # not the numbers that break ties
    watched = WatchedScores(draw(rng, n_calibrated), PATIENCE, seed)
    for i, score in enumerate(draw(rng, LONGEST).tolist()):
        if watched.update(score, i, 0.0) is not None:
            return i + 1
    return LONGEST


def everything(n_classes: int, n_calibrated: int, seed: int) -> int:
    """Return the number of inputs up to the first alarm of all that is watched."""
    rng = np.random.default_rng([seed, 1])  # not the numbers that break ties
    draws = {("mahalanobis", "1:out"): SCORES["normal"], ("knn", "1:out"): SCORES["three values"]}
    stand_in: Any = SimpleNamespace(scorers=dict.fromkeys(draws), header=HEADER)
    stream = Changes(stand_in, PATIENCE)
    for i, (key, draw) in enumerate(draws.items()):
        patience = stream._watched[key].detector.patience
        stream._watched[key] = WatchedScores(draw(rng, n_calibrated), patience, i)
    shares = 1 / np.arange(1, n_classes + 1)
    answers = rng.choice(n_classes, LONGEST, p=shares / shares.sum())
    scores = {key: draw(rng, LONGEST) for key, draw in draws.items()}
    is_refused = rng.random(LONGEST) < 0.05
    for i in range(LONGEST):
        content = i.to_bytes(8)
        if is_refused[i]:
            opened = stream.refuse([content], ["age"], 0.0)
        else:
            each: dict[Any, Any] = {key: (float(scores[key][i]), None) for key in draws}
            numbers = {"age": float(rng.normal()), "visits": float(rng.poisson(2))}
            seen = Seen(content, numbers, f"class {answers[i]}", float(rng.beta(5, 1)))
            opened = stream.update([Verdict(None, None, each, None)], 0.0, [seen])
        if opened:
            return i + 1
    return LONGEST


def line_of(title: str, times: Sequence[int]) -> str:
    """Return a line of the table: the mean time to an alarm, and chances beside the promise."""
    found, n = np.array(times), len(times)
    mean = f"{found.mean():.0f}" if (found < LONGEST).all() else f"over {found.mean():.0f}"
    cells = []
    for within in WITHIN:
        n_false = int((found <= within).sum())
        low, _ = clopper_pearson(n_false, n)
        broken = ", broken" if low > within / PATIENCE else ""
        cells.append(f"{n_false / n:.3f}{broken}")
    return f"| {title} | {' | '.join([mean, *cells])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=400, help="streams of each line")
    n = parser.parse_args().streams
    titles = [f"alarm within {within}, promise {within / PATIENCE}" for within in WITHIN]
    print(f"{n} streams, patience {PATIENCE}\n")
    print(f"| watched | mean inputs to an alarm | {' | '.join(titles)} |\n|---|---|---|---|")
    for title, draw in SCORES.items():
        for rows in CALIBRATED:
            times = [one_detector(draw, rows, seed) for seed in range(n)]
            print(line_of(f"one detector, {title}, {rows} rows", times), flush=True)
    for classes in CLASSES:
        for rows in CALIBRATED:
            times = [everything(classes, rows, seed) for seed in range(n)]
            print(line_of(f"all, {classes} classes, {rows} rows", times), flush=True)


if __name__ == "__main__":
    main()
