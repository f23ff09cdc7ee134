"""Print how often value +- 1.96 se holds the mean of fresh draws: ``python -m tools.coverage``.

Related rows, classes and factors. ``coverage`` is how often the interval holds the mean of the
values of all draws, ``ratio`` the mean error over the spread of the values. Good is .92 to .98.
"""

import statistics

from tools.measured import STUDENT, chosen, found, is_one, options, related, scalar

LOW, HIGH = 0.92, 0.98


def main() -> None:
    """Print the table."""
    asked = options(__doc__ or "", draws=40, rows=[200])
    print(
        "| figure | rows | mean | spread | mean error | ratio | coverage | |"
        "\n|---|---|---|---|---|---|---|---|"
    )
    for name, figure in chosen(asked.words):
        for n in asked.rows:
            try:
                results = [found(figure, related(n, 1000 + s)) for s in range(asked.draws)]
            except Exception as error:
                print(f"| {name} | {type(error).__name__}: {str(error)[:100]} |", flush=True)
                continue
            if any(r.se is None for r in results) or not is_one(results[0].value):
                told = results[0].conventions.get("se", "no single number")
                print(f"| {name} | {n} | no error: {told} |", flush=True)
                continue
            values, errors = ([scalar(getattr(r, w)) for r in results] for w in ("value", "se"))
            mean, spread = statistics.mean(values), statistics.stdev(values)
            holds = [abs(v - mean) <= STUDENT * e for v, e in zip(values, errors, strict=True)]
            ratio = statistics.mean(errors) / spread if spread > 0 else float("nan")
            rate, flags = statistics.mean(holds), sorted({f for r in results for f in r.flags})
            noise = 2 * (0.05 / len(holds)) ** 0.5
            off = "" if LOW - noise <= rate and ratio < 1.3 else "<-- off"
            shown = f"{mean:.4f} | {spread:.4f} | {statistics.mean(errors):.4f}"
            told = " ".join(flags)
            print(
                f"| {name} | {n} | {shown} | {ratio:.2f} | {rate:.2f} | {told} {off} |", flush=True
            )


if __name__ == "__main__":
    main()
