"""Facts about an exported file's rows: the model and the data behind them."""

import json
from typing import Any

from sonde.files.identity import data_hash, hashed
from sonde.store.reading import Store

KEY = "sonde"
SEAL = "seal"
"""Where the hash of the whole file stands beside them; see ``core.seal``."""
TOLD = ("sites", "view", "model", "config", "dtype", "data", "spec")
"""What ``sonde info`` shows of it."""


def facts_of(store: Store, n_rows: int) -> dict[str, Any]:
    """Return the origin of rows: model, configuration and data, as in the header of a fit.

    ``spec`` is the hash of all that the store says of model, data, sites and reading. Rows that
    were stored without a model name none.
    """
    identity = store.identity()
    named = {name: identity.get(name) for name in ("model", "config", "dtype")}
    return {
        "kind": "rows of a store",
        "n_rows": n_rows,
        "sites": [s.key for s in store.schema],
        **{name: value for name, value in named.items() if value is not None},
        "data": data_hash(identity),
        "spec": hashed(identity),
    }


def written(facts: dict[str, Any]) -> str:
    """Return facts as text for a file."""
    return json.dumps(facts, sort_keys=True)


def said(text: bytes | str) -> dict[str, Any]:
    """Return the facts in a file's text, or an empty dict if it is not a JSON object."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
