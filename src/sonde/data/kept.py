"""Reading options of an earlier run that also fit other data."""

from collections.abc import Mapping
from typing import Any

from sonde.data.opening import open_source


def kept_for(data: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, without columns that these data lack.

    Parameters
    ----------
    data : str, path or iterable
        Data, as ``open_inputs`` takes them.
    options : mapping
        Named options of ``open_inputs``.

    Examples
    --------
    >>> kept_for([{"body": "a"}], {"text_column": "body", "max_length": 8})
    {'text_column': 'body', 'max_length': 8}
    >>> kept_for([{"text": "a"}], {"text_column": "body", "max_length": 8})
    {'max_length': 8}
    """
    columns = {
        name: {part.strip() for part in str(value).split(",")}
        for name, value in options.items()
        if name.endswith("_column")
    }
    if not columns:
        return dict(options)
    source, _ = open_source(data, skip_bad=True)
    there = source.columns(set().union(*columns.values())).keys()
    return {name: v for name, v in options.items() if columns.get(name, set()) <= there}
