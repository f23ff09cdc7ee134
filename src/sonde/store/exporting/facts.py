"""What an exported file says about its rows: the model and the data they come from."""

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
    """Return where rows come from: model, configuration and data as the header of a fit has them.

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
    """Return facts as the text that stands in a file."""
    return json.dumps(facts, sort_keys=True)


def said(text: bytes | str) -> dict[str, Any]:
    """Return the facts in the text of a file, or an empty dict if it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
