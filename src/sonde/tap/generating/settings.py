"""Settings of ``generate``, typed or passed by users."""

import ast
from collections.abc import Mapping
from typing import Any

from sonde.core.errors import InputError


def settings_of(generate: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of ``generate``, including those in a ``generation_config``."""
    settings = dict(generate)
    config = settings.pop("generation_config", None)
    named = {} if config is None else vars(config)
    chosen = {n: v for n, v in named.items() if v is not None and not n.startswith("_")}
    chosen.pop("transformers_version", None)
    return chosen | settings


def parse_settings(text: str) -> dict[str, Any]:
    """Return the settings of ``generate`` in ``name=value,name=value``.

    Examples
    --------
    >>> parse_settings("max_new_tokens=128,num_beams=4,do_sample=False")
    {'max_new_tokens': 128, 'num_beams': 4, 'do_sample': False}

    Raises
    ------
    InputError
        If the text is anything else, or a number of tokens is below 1.
    """
    wrong = InputError(
        "generate: expected settings such as 'max_new_tokens=128,num_beams=4' (numbers, True, "
        f"False, None, lists or quoted words), got {text!r}."
    )
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError:
        raise wrong from None
    if not isinstance(call, ast.Call) or call.args or not call.keywords:
        raise wrong
    settings: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in settings:
            raise wrong
        try:
            settings[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise wrong from None
    for name in ("max_new_tokens", "num_beams"):
        value = settings.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"generate: expected {name} of at least 1, got {value!r}.")
    return settings
