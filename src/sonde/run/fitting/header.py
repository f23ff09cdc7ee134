"""Header of a bundle: its model, reading, sites and data, and a check of streams against them."""

from collections.abc import Sequence
from typing import Any, Final

from sonde.core.clearance import LABELS, require_cleared
from sonde.core.errors import SiteError, StateError
from sonde.core.plan import Plan, Split
from sonde.core.stream import Stream
from sonde.files.identity import CODE, MODEL_FACTS, data_hash, describe_difference
from sonde.run.fitting.group_counts import counts_of, group_draws
from sonde.run.fitting.same_behaviour import BEHAVIOUR, require_same_behaviour, warn_unknown
from sonde.run.reading.recipe import recipe_in, recipe_of, require_same_recipe
from sonde.tap import LiveStream, known_config_hash, known_structure

NAMED: Final = 3
"""Sites that an error lists before it counts the rest."""
OWN_LABELS = "own_labels"
"""Present in ``data`` if the labels number the outputs of a model that does not name them."""
READING_FIELDS = ("objective", "keep_special", "perturb", "sinks")


def unit_entry(plan: Plan, stream: Stream) -> dict[str, Any]:
    """Return the header's entry of all units of a plan, with the fingerprint of the data."""
    units = [[0, plan.n_units - 1]]
    return {"plan": plan.id, "data": data_fingerprint(stream), "units": units}


def data_fingerprint(stream: Stream) -> str:
    """Return a hash of the fields in a stream's identity that define its rows."""
    return data_hash(stream.identity())


def make_header(
    stream: Stream,
    units: list[dict[str, Any]],
    counters: dict[str, int],
    split: Split | None = None,
) -> dict[str, Any]:
    """Return the description of model, sites and data for a bundle's header."""
    identity = stream.identity()
    return {
        "group_draws": group_draws(stream),
        "model": {name: identity.get(name) for name in MODEL_FACTS} | {CODE: identity.get(CODE)},
        "reading": {
            **{name: identity.get(name) for name in READING_FIELDS},
            **({"logits_output": identity["logits_output"]} if "logits_output" in identity else {}),
        },
        **({} if stream.behaviour is None else {BEHAVIOUR: stream.behaviour}),
        "recipe": recipe_of(stream),
        "sites": [
            {
                "text": s.key,
                "dim": s.dim,
                "reducer": str(s.reducer),
                "order": i,
                "dtype": s.dtype,
                "axes": s.axes,
                "prefix": s.prefix,
                "suffix": s.suffix,
                "cls": s.cls,
            }
            for i, s in enumerate(stream.schema)
        ],
        "units": units,
        "counters": dict(sorted(counters.items())),
        **({LABELS: identity[LABELS]} if identity.get(LABELS) else {}),
        "data": {
            "fingerprint": units[0]["data"] if units else "",
            **counts_of(stream, split),
            "grouped": stream.grouped,
            "label_names": list(stream.label_names),
            "seed": stream.seed,
        },
    }


def unreadable_sites(who: str, sites: Sequence[str], error: SiteError) -> StateError:
    """Return the error for sites of a fit that cannot be read from a model, with the full reason.

    A site may be missing, or exist and be refused, as the parts of a layer that ranks split.
    """
    more = f" and {len(sites) - NAMED} more" if len(sites) > NAMED else ""
    return StateError(
        f"{who}: the state was fitted at {', '.join(sites[:NAMED])}{more}, which cannot be read "
        f"from this model: {error} If this is not the model of the fit, use the model of the fit."
    )


def require_same_model(header: dict[str, Any], stream: Stream) -> None:
    """Raise if the model, sites, reducers or widths of a stream differ from those of a bundle.

    Raises
    ------
    StateError
        Naming the first thing that differs.
    """
    identity = stream.identity()
    require_cleared(header, stream)
    if isinstance(stream, LiveStream):
        live, fitted_model = stream.model, header["model"]
        identity["config"] = known_config_hash(live.config, live.module, fitted_model.get("config"))
        identity["structure"] = known_structure(live.module, fitted_model.get("structure"))
    warn_unknown(header["model"], identity, "score")
    for kind, names in (("model", MODEL_FACTS[::-1]), ("reading", READING_FIELDS)):
        apart = describe_difference(identity, header[kind], names)
        if apart is not None:
            more = " sonde drift shows what changed between two models." if kind == "model" else ""
            raise StateError(
                f"score: the state was fitted for another {kind}: {apart}. Fit again.{more}"
            )
    if isinstance(stream, LiveStream):
        require_same_behaviour(header, stream.model.module, identity, "score")
    require_same_recipe(recipe_in(header), recipe_of(stream))
    schema = {s.key: s for s in stream.schema}
    for site in header["sites"]:
        column = schema.get(site["text"])
        if column is None or column.dim != site["dim"] or str(column.reducer) != site["reducer"]:
            got = "nothing" if column is None else f"dim={column.dim}, reducer {column.reducer}"
            raise StateError(
                f"score: expected dim={site['dim']}, reducer {site['reducer']} at {site['text']} "
                f"(as fitted), got {got}."
            )
