"""Print how far each null lies from its figure where there is nothing: ``python -m tools.nulls``.

White rows, random classes, unrelated sides; ``--laws t3`` draws rows of Student's law. ``gap`` is
the mean of value - null over draws, in spreads of the value over draws; a null is good within 0.3.
``noise`` is the error of that gap.
"""

import itertools
import math
import statistics

from tools.measured import chosen, found, is_one, options, scalar, unrelated

GOOD = 0.3


def main() -> None:
    """Print the table."""
    asked = options(__doc__ or "", draws=40, rows=[200])
    print(
        "| figure | law | rows | value | null | spread | gap | noise | |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, figure in chosen(asked.words):
        for law, n in itertools.product(asked.laws, asked.rows):
            try:
                results = [found(figure, unrelated(n, seed, law)) for seed in range(asked.draws)]
            except Exception as error:
                print(f"| {name} | {type(error).__name__}: {str(error)[:100]} |", flush=True)
                continue
            if results[0].null is None or not is_one(results[0].value):
                print(f"| {name} | {law} | {n} | no null, or no single number |", flush=True)
                continue
            values, nulls = ([scalar(getattr(r, w)) for r in results] for w in ("value", "null"))
            spread = statistics.stdev(values)
            gaps = [v - w for v, w in zip(values, nulls, strict=True)]
            gap = statistics.mean(gaps) / spread if spread > 0 else 0.0
            noise = statistics.stdev(gaps) / spread / math.sqrt(len(gaps)) if spread > 0 else 0.0
            said = " ".join(sorted({f for r in results for f in r.flags}))
            off = "<-- off" if abs(gap) > GOOD + 2 * noise else ""
            shown = f"{statistics.mean(values):.4f} | {statistics.mean(nulls):.4f} | {spread:.4f}"
            print(
                f"| {name} | {law} | {n} | {shown} | {gap:+.2f} | {noise:.2f} | {said} {off} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
