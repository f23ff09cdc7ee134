"""Useful and useless fields of a table: gates, and embedding tables shared by fields.

The bundled diabetes table with columns of noise, and simulated categorical fields.
"""

from math import log
from typing import final

import torch
from sklearn.datasets import load_diabetes  # pyright: ignore[reportMissingTypeStubs]
from sklearn.linear_model import LassoCV  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import UnitGate
from sonde_studies._field_arms import USES, r_squared, table_uses, two_streams
from sonde_studies._gated_pairs import pair_selection
from sonde_studies._shared_tables import FIELDS, VALUES, field_values, value_gates
from sonde_studies.arms import note_again, note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

REAL, NOISE, FIT, STEPS, TINY = 10, 30, 300, 800, 20
TABLES = {
    "four of 50": ("per_field", VALUES // FIELDS, 1),
    "shared": ("shared", VALUES, 1),
    "shared, two places": ("shared", VALUES, 2),
}
"""Kind, entries and places for a value of the tables of each arm."""


@final
class FieldSelectionStudy(Study):
    """Learned gates against the lasso, and one small table for four fields."""

    name = "field-selection"
    title = "do gates find the fields that help, and may fields share a table?"
    paper = "lyu2023optfs"
    fidelity = (
        "gates of columns on a table of numbers, gates of values on simulated fields; one shared "
        "table of 200 entries"
    )
    data = "diabetes with 30 columns of noise; four simulated fields of 200 values"
    place = "tables"
    claims = (
        Claim("found", "Gates keep more real columns than columns of noise.",
              "share of real columns kept less that of noise",
              arms=("real columns", "columns of noise")),
        Claim("error", "Trained anew on what gates keep, a net errs less on new rows than one "
              "trained on all columns for as many steps.", "R^2 with gates less without",
              arms=("gates", "no gates")),
        Claim("lasso", "It errs no more than the lasso, which has fewer weights, to 0.02.",
              "R^2 with gates less that of the lasso, and 0.02",
              arms=("net of 24 units", "lasso")),
        Claim("values", "Gates of single values keep those that help, in fields that all help.",
              "share kept of values that help less that of values worth nothing",
              arms=("values that help", "values worth nothing")),
        Claim("shared", "A shared table of as many numbers errs no more than four tables, to 0.02.",
              "R^2 of a shared table of 200 entries less that of four of 50, and 0.02",
              arms=("shared", "four of 50")),
        Claim("lookups", "Two places for a value help a shared table.",
              "R^2 with two places less with one; shared, two places has 0.51 times the "
              "parameters of shared",
              arms=("shared, two places", "shared")),
        Claim("apart", "Fields that share a table read it in directions further apart.",
              "mean absolute cosine of the head's weights for two fields, four tables less shared",
              arms=("four of 50", "shared")),
        Claim("pairs", "Products of gates keep planted pairs, and others of their columns alone.",
              "share of planted pairs kept less that of others",
              arms=("planted pairs", "other pairs")),
        Claim("streams", "A bilinear form of two gated streams errs less than their sum.",
              "R^2 of the bilinear form less that of the sum",
              arms=("bilinear", "sum")),
        Claim("gates", "Gates of the streams are worth two hundredths.",
              "R^2 with gates less without; bilinear has 1.4 times the parameters of no gates of "
              "streams",
              above=0.02,
              arms=("bilinear", "no gates of streams")),
        Claim("two uses", "A table for searching and one for meaning err less than one for both.",
              "R^2 of 8 and 8 numbers for a value less that of 16 for both uses",
              arms=("decoupled", "one table")),
        Claim("narrow", "A table for searching may be half as wide and err no more, to 0.005.",
              "R^2 with 4 numbers to search less with 8, and 0.005; narrow has 0.75 times the "
              "parameters",
              arms=("narrow", "decoupled")),
        Claim("conflict", "In one table the gradients of both uses point apart for most values.",
              "share of values whose two gradients have a negative cosine, less 0.5"),
        Claim("larger", "There the gradient of meaning is twice that of searching.",
              "logarithm of the norm of the gradient of meaning over that of searching, less "
              "log 2",
              arms=("gradient of meaning", "gradient of searching")),
    )  # fmt: skip
    null = Claim("only noise", "Gates over noise alone keep no column more than another.",
                 "share kept of the first ten columns less that of the others")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train gated and plain nets on the table, and nets over fields."""
        steps = TINY if tiny else STEPS
        x, y = _table(seed)
        tick("gates")
        sharp, kept = _fitted(x, y, seed, steps, True)
        gated, _ = _fitted(x * kept, y, seed, steps, False)  # anew, on what the gates keep
        tick("no gates")
        plain, _ = _fitted(x, y, seed, 2 * steps, False)  # as many as to select and to train anew
        tick("gates over noise")
        lasso = LassoCV(cv=5).fit(x[:FIT].numpy(), y[:FIT].numpy())
        sparse = float(lasso.score(x[FIT:].numpy(), y[FIT:].numpy()))
        empty = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 50))
        nothing = _fitted(empty, y, seed, steps, True)[1]
        tick("tables")
        tables = dict[str, tuple[float, float]]()
        for arm, kind in TABLES.items():
            with part(arm):
                tables[arm] = field_values(seed, steps, *kind)
        fit = {name: error for name, (error, _) in tables.items()}
        with part("gates of pairs"):
            pairs = pair_selection(seed, steps)
        with part("gates of values"):
            values = value_gates(seed, steps)
        for gate, both in {
            "gates": ("real columns", "columns of noise"),
            "gates of pairs": ("planted pairs", "other pairs"),
            "gates of values": ("values that help", "values worth nothing"),
        }.items():
            for name in both:
                note_again(name, gate)
        numbers = (REAL + NOISE) * 24 + 2 * 24 + 1
        note_for("net of 24 units", rows=FIT, parameters=numbers)
        note_for("lasso", rows=FIT, parameters=REAL + NOISE + 1)
        streams, uses = two_streams(seed, steps), two_uses(seed, tiny)
        return {
            "found": float(kept[:REAL].mean() - kept[REAL:].mean()),
            "error": gated - plain,
            "lasso": gated - sparse + 0.02,
            "values": values["that help"] - values["worth nothing"],
            "shared": fit["shared"] - fit["four of 50"] + 0.02,
            "lookups": fit["shared, two places"] - fit["shared"],
            "apart": tables["four of 50"][1] - tables["shared"][1],
            "pairs": pairs["kept | products"],
            "streams": streams["bilinear"] - streams["sum"],
            "gates": streams["bilinear"] - streams["no gates"],
            **uses,
            "only noise": float(nothing[:REAL].mean() - nothing[REAL:].mean()),
            "R^2 | gates": gated,
            "R^2 | gates, not trained anew": sharp,
            "R^2 | no gates": plain,
            "R^2 | lasso": sparse,
            **{f"values kept | {name}": v for name, v in values.items()},
            **{f"R^2 | {name}": v for name, v in fit.items()},
            **{f"pairs | {name}": v for name, v in pairs.items()},
            **{f"R^2, two streams | {name}": v for name, v in streams.items()},
        }  # fmt: skip


def two_uses(seed: int, tiny: bool) -> dict[str, float]:
    """Return the figures of claims about tables for searching and for meaning."""
    uses = table_uses(seed, TINY if tiny else STEPS)
    return {
        "two uses": uses["decoupled"] - uses["shared"],
        "narrow": uses["narrow"] - uses["decoupled"] + 0.005,
        "conflict": uses["conflict"] - 0.5,
        "larger": uses["larger"] - log(2),
        "mean cosine of the gradients of both uses": uses["alike"],
        **{f"R^2, two uses | {name}": uses[name] for name in USES},
    }


def _table(seed: int) -> tuple[Tensor, Tensor]:
    found = load_diabetes()
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found.target), generator=draw)  # pyright: ignore
    x = torch.from_numpy(found.data).float()[order]  # pyright: ignore
    y = torch.from_numpy(found.target).float()[order]  # pyright: ignore
    x = torch.cat([x / x.std(0), torch.randn(len(x), NOISE, generator=draw)], 1)
    return x, (y - y.mean()) / y.std()


def _fitted(x: Tensor, y: Tensor, seed: int, steps: int, gated: bool) -> tuple[float, Tensor]:
    gate = UnitGate(REAL + NOISE)
    body = drawn(
        lambda: nn.Sequential(nn.Linear(REAL + NOISE, 24), nn.ReLU(), nn.Linear(24, 1)), seed
    )
    done = 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal done
        gate.progress.fill_(min(1.0, done / steps))
        done += 1
        shown = gate(x[rows]) if gated else x[rows]
        open_share = gate.gates().mean() if gated else 0.0
        return mse_loss(body(shown)[:, 0], y[rows]) + 0.3 * open_share

    weights = [*body.parameters(), *(gate.parameters() if gated else ())]
    minimise(loss, weights, FIT, steps=steps, seed=seed)
    if gated:
        gate.harden()
    with torch.no_grad():
        shown = gate(x[FIT:]) if gated else x[FIT:]
        kept = (gate(torch.ones(1, REAL + NOISE))[0] > 0).float()
        return r_squared(body(shown)[:, 0], y[FIT:]), kept
