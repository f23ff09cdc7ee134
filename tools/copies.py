"""Print what copies of rows do to every figure: ``python -m tools.copies [WORD ...]``.

Rows in which nothing tells of anything else, each of them four times in random order, without ids
and without groups. ``z`` is the mean over draws of (value - null) / se: a figure that says nothing
false has a small one, or the flag ``copies``. The same without copies stands beside it.
"""

import statistics
from collections.abc import Callable

import torch
from tools.measured import World, chosen, doubled, found, is_one, options, scalar, unrelated


def line(figure: Callable[[World], object], worlds: list[World]) -> tuple[float, float, float, str]:
    """Return means of value, null and of their gap in errors, and the flags."""
    results = [found(figure, w) for w in worlds]  # type: ignore[arg-type]
    values = [(scalar(r.value), scalar(r.null), scalar(r.se)) for r in results]
    one = all(is_one(r.value) for r in results)
    gaps = [(v - n) / s for v, n, s in values if s > 0] if one else []
    z = statistics.mean(gaps) if gaps else float("nan")
    flags = sorted({f for r in results for f in r.flags})
    means = [statistics.mean(column) for column in zip(*values, strict=True)]
    return means[0], means[1], z, f"n={results[0].n} " + " ".join(flags)


def main() -> None:
    """Print the table."""
    asked = options(__doc__ or "", draws=5, rows=[300])
    n = asked.rows[0]
    print("| figure | value | null | z | each row four times: value | null | z | |")
    print("|---|---|---|---|---|---|---|---|")
    for name, figure in chosen(asked.words):
        worlds = [unrelated(n, seed) for seed in range(asked.draws)]
        try:
            plain = line(figure, worlds)
            torch.manual_seed(0)
            copied = line(figure, [doubled(w, 4) for w in worlds])
        except Exception as error:
            print(f"| {name} | {type(error).__name__}: {str(error)[:120]} |", flush=True)
            continue
        shown = " | ".join(f"{v:.3f}" for v in (*plain[:3], *copied[:3]))
        loud = abs(copied[2]) > 5 and "copies" not in copied[3]
        print(f"| {name} | {shown} | {copied[3]}{' <-- silent' if loud else ''} |", flush=True)


if __name__ == "__main__":
    main()
