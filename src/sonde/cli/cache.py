"""``sonde cache``: what key-value caches that forget tokens cost on a user's own texts."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from sonde.cli._table import filled, legend, table
from sonde.cli.console import say, say_json
from sonde.cli.options import DataWord, ModelWord, Printing, named
from sonde.core.errors import InputError, near

MEANINGS = {
    "memory": "bytes that the cache holds at the end of a text, against a cache of all tokens",
    "KL": "nats by which the predictions of next tokens differ from those with all tokens kept",
    "99 %": "the KL that one token in a hundred exceeds",
    "same": "share of tokens whose likeliest next token stays the same",
    "time": "seconds against a plain cache",
}


@dataclass(frozen=True)
class Cache:
    """Try key-value caches that keep only some tokens: what they save and what they cost.

    A language model keeps keys and values of every token that it has read. Each rule keeps a share
    of them, in its own way. Half of each text is read as a prompt; the rest is read in parts, with
    the cache cut to its budget after each, and every prediction is compared with that of the whole
    cache. The last lines recommend a rule and show the Python that uses it.

    Example: sonde cache sonde:stdlib sonde:stdlib/test --limit 32
    """

    model: ModelWord
    data: DataWord
    rules: Annotated[
        tuple[str, ...], named("WORD ...", "rules to try; by default all, in their usual form")
    ] = ()
    budgets: Annotated[
        tuple[float, ...], tyro.conf.arg(help="shares of the tokens that stay, in (0, 1]")
    ] = (0.5, 0.25, 0.125)
    max_kl: Annotated[
        float, tyro.conf.arg(help="nats of divergence that a recommended cache may cost")
    ] = 0.05
    step: Annotated[int, tyro.conf.arg(help="tokens read between two evictions")] = 16
    limit: Annotated[int, tyro.conf.arg(help="how many texts, or pieces of texts, are read")] = 64
    max_length: Annotated[int | None, named("N", "tokens of one example at most")] = None
    long: Annotated[
        Literal["chunk", "truncate", "error"],
        tyro.conf.arg(help="what happens to texts longer than the context"),
    ] = "chunk"
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    batch_size: Annotated[int, tyro.conf.arg(help="texts in one forward")] = 8
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda, mps, or map (spread)")] = "auto"
    dtype: Annotated[
        str, tyro.conf.arg(help="auto (as the config says), float32, bfloat16, float16")
    ] = "auto"
    trust_remote_code: Annotated[
        bool, tyro.conf.arg(help="run code that comes with the checkpoint, for this call")
    ] = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Try the rules and print what they cost."""
        from sonde.data import load
        from sonde.data.opening import open_inputs
        from sonde.run.compressing.caches import smallest, try_caches

        found = _rules()
        for word in self.rules:
            if word not in found:
                raise InputError(
                    f"cache: no rule is called {word!r}.{near(word, found)} Known: "
                    f"{', '.join(found)}."
                )
        kinds = [found[word] for word in self.rules or found]
        rules = [kind(budget=share) for share in self.budgets for kind in kinds]
        options = {"device": self.device, "dtype": self.dtype}
        model = load(self.model, **options, trust_remote_code=self.trust_remote_code)
        names = ("max_length", "long", "text_column", "batch_size")
        inputs = open_inputs(model, self.data, **{name: getattr(self, name) for name in names})
        inputs = inputs.first(self.limit)
        trials = try_caches(model, inputs, rules, step=self.step, progress=not self.printing.quiet)
        best = smallest(trials, self.max_kl)
        if self.printing.json:
            say_json(
                {
                    "trials": [trial.json() for trial in trials],
                    "recommended": None if best is None else best.json(),
                    "max_kl": self.max_kl,
                    "n_texts": len(inputs),
                }
            )
            return 0
        if not self.printing.quiet:
            rows = [_row(trial) for trial in sorted(trials, key=_order)]
            say(table(("rule", "budget", *MEANINGS), rows) + "\n\n" + legend(MEANINGS) + "\n")
        say(self._advice(best, trials, len(inputs)))
        return 0

    def _advice(self, best: Any, trials: Any, n_texts: int) -> str:
        if best is None:
            nearest = min(trials, key=lambda t: t.divergence_nats)
            return filled(
                f"No rule stays below {self.max_kl:g} nats on these {n_texts} texts; the nearest "
                f"is {nearest.rule!r} with {nearest.divergence_nats:.3g}. Try larger --budgets, or "
                "allow more with --max-kl."
            )
        said = filled(
            f"Smallest cache whose predictions differ by at most {self.max_kl:g} nats on these "
            f"{n_texts} texts: {best.rule!r} holds {best.memory:.0%} of the bytes and costs "
            f"{best.divergence_nats:.2g} nats; {best.same_answer:.1%} of the likeliest tokens stay."
        )
        kind = type(best.rule).__name__
        return (
            f"{said}\n\n  from sonde.compress import {kind}\n"
            f"  with sonde.caching(model, {best.rule!r}) as cache:\n"
            "      model.module.generate(**inputs, past_key_values=cache)"
        )


def _rules() -> dict[str, Any]:
    """Return the rules of the compress family by their words."""
    from sonde import compress
    from sonde.core import CacheRule
    from sonde.run.instruments.families import snake_case

    members = [getattr(compress, name) for name in compress.__all__]
    kinds = [m for m in members if isinstance(m, type) and issubclass(m, CacheRule)]
    return {getattr(kind, "word", snake_case(kind.__name__)): kind for kind in kinds}


def _order(trial: Any) -> tuple[float, float]:
    return -trial.rule.budget, trial.divergence_nats


def _row(trial: Any) -> tuple[str, ...]:
    se = "" if math.isinf(trial.se) else f" +- {trial.se:.1g}"
    return (
        type(trial.rule).__name__,
        f"{trial.rule.budget:g}",
        f"{trial.memory:.0%}",
        f"{trial.divergence_nats:.3g}{se}",
        f"{trial.worst_nats:.3g}",
        f"{trial.same_answer:.1%}",
        f"{trial.time:.2f} x",
    )
