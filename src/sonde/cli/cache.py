"""``sonde cache``: the cost of smaller key-value caches on a user's own texts."""

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import tyro

from sonde.cli._table import filled, legend, table
from sonde.cli.console import say, say_json
from sonde.cli.options import (
    DataWord,
    DeviceWord,
    DtypeWord,
    LongWord,
    MaxLength,
    ModelWord,
    Printing,
    TrustFlag,
    listed,
    named,
)
from sonde.core.wording import plural

MEANINGS = {
    "memory": "bytes of the cache at the end of a text, as a fraction of the full cache",
    "KL": "mean KL divergence of next-token predictions from those with the full cache, in nats",
    "99 %": "KL divergence that 1 % of the tokens exceed",
    "same": "fraction of positions whose most likely next token does not change",
    "time": "time relative to a plain cache",
}


@dataclass(frozen=True)
class Cache:
    """Try smaller key-value caches: the memory they save and the accuracy they cost.

    A language model keeps the keys and values of every token that it has read. An eviction rule
    keeps a fraction of the tokens; quant_cache keeps all tokens in a few bits, cross_layer_cache in
    low-rank matrices. Half of each text is read as a prompt. The rest is read in parts, the cache
    is shrunk after each part, and every prediction is compared with that of the full cache. The
    last lines recommend a cache and show how to use it in Python.

    Example: sonde cache sonde:stdlib sonde:stdlib/test --limit 32
    """

    model: ModelWord
    data: DataWord
    rules: Annotated[
        tuple[str, ...],
        named("WORD,...", "caches to try; by default all, with their default parameters"),
    ] = ()
    budgets: Annotated[
        tuple[float, ...], tyro.conf.arg(help="fractions of the tokens or bytes to keep, in (0, 1]")
    ] = (0.5, 0.25, 0.125)
    bits: Annotated[
        tuple[int, ...], tyro.conf.arg(help="bits of a number in caches that round: 2, 4 or 8")
    ] = (8, 4, 2)
    max_kl: Annotated[
        float, tyro.conf.arg(help="largest divergence, in nats, of a recommended cache")
    ] = 0.05
    step: Annotated[int, tyro.conf.arg(help="tokens read between two evictions")] = 16
    limit: Annotated[int, tyro.conf.arg(help="number of texts, or pieces of texts, to read")] = 64
    max_length: MaxLength = None
    long: LongWord = "auto"
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    batch_size: Annotated[int, tyro.conf.arg(help="texts in one forward pass")] = 8
    device: DeviceWord = "auto"
    dtype: DtypeWord = "auto"
    trust_remote_code: TrustFlag = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Try the caches and print their costs."""
        from sonde.run.compressing.compare_caches import compare_caches

        names = ("budgets", "bits", "max_kl", "step", "limit", "batch_size")
        reading = ("max_length", "long", "text_column")
        comparison = compare_caches(
            self.model,
            self.data,
            listed(self.rules),
            **{name: getattr(self, name) for name in (*names, *reading)},
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            progress=not self.printing.quiet,
        )
        if self.printing.json:
            say_json(comparison.document)
            return 0
        if not self.printing.quiet:
            order = {setting: n for n, setting in enumerate(comparison.settings)}
            by_cost = sorted(
                comparison.trials, key=lambda t: (order[t.rule.setting], t.divergence_nats)
            )
            rows = [_row(trial) for trial in by_cost]
            say(table(("cache", "keeps", *MEANINGS), rows) + "\n\n" + legend(MEANINGS) + "\n")
        say(self._advice(comparison.best, comparison.trials, comparison.document["n_texts"]))
        return 0

    def _advice(self, best: Any, trials: Any, n_texts: int) -> str:
        if best is None and all(math.isinf(trial.se) for trial in trials):
            return filled(
                "No cache is recommended: the errors are not known, because the "
                f"{plural(n_texts, 'text')} belong to a single group. Raise --limit, or pass texts "
                "of several groups."
            )
        if best is None:
            nearest = min(trials, key=lambda t: t.divergence_nats)
            return filled(
                f"No rule's mean divergence plus two standard errors stays below {self.max_kl:g} "
                f"nats on {plural(n_texts, 'text')}; the nearest "
                f"is {_python(nearest.rule)} with {nearest.divergence_nats:.3g}. Try larger "
                "--budgets, or allow more with --max-kl."
            )
        words = filled(
            "Smallest cache whose mean divergence plus two standard errors is at most "
            f"{self.max_kl:g} nats on {plural(n_texts, 'text')}: {_python(best.rule)} holds "
            f"{best.memory:.0%} of the bytes and costs {best.divergence_nats:.2g} nats; "
            f"{best.same_answer:.1%} of the most likely tokens do not change."
        )
        kind = type(best.rule).__name__
        return (
            f"{words}\n\n  from sonde.compress import {kind}\n"
            f"  with sonde.caching(model, {_python(best.rule)}) as cache:\n"
            "      model.module.generate(**inputs, cache=cache)"
        )


def _python(rule: Any) -> str:
    """Return the Python code that creates a cache, without default values."""
    usual = type(rule)()
    own = [f for f in fields(rule) if getattr(rule, f.name) != getattr(usual, f.name)]
    return f"{type(rule).__name__}({', '.join(f'{f.name}={getattr(rule, f.name)!r}' for f in own)})"


def _row(trial: Any) -> tuple[str, ...]:
    se = "" if math.isinf(trial.se) else f" +- {trial.se:.1g}"
    return (
        type(trial.rule).__name__,
        trial.rule.setting,
        f"{trial.memory:.0%}",
        f"{trial.divergence_nats:.3g}{se}",
        f"{trial.worst_nats:.3g}",
        f"{trial.same_answer:.1%}",
        f"{trial.time:.2f} x",
    )
