import json
import random
import runpy
from pathlib import Path

import jsonschema
import pytest

from sonde.core.errors import StateError
from sonde.report import check_report, schema

HERE = Path(__file__).parent


def test_the_example_is_what_its_script_writes(report) -> None:
    made = runpy.run_path(str(HERE / "make_example.py"))
    assert made["rounded"](made["example"]()) == report
    check_report(report)


def test_a_bare_report_is_valid(bare) -> None:
    check_report(bare)


def _cut(value):
    """Keep two items of every list, so that checking takes no time."""
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    keep = 5 if isinstance(value, list) and len(value) == 5 else 2
    return [_cut(item) for item in value[:keep]] if isinstance(value, list) else value


def _places(value, path=()):
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        if not (isinstance(key, int) and key > 2):
            yield from _places(item, (*path, key))


@pytest.mark.slow
@pytest.mark.truth("jsonschema 4, Draft202012Validator")
def test_the_checker_agrees_with_a_full_implementation_on_spoiled_reports(report) -> None:
    oracle = jsonschema.Draft202012Validator(schema())
    report = _cut(report)
    text, chance = json.dumps(report), random.Random(5)
    places = [path for path in _places(report) if path]
    wrong = (None, -1, 1.5, "x", True, [], {}, [None], {"surprise": 1}, "SND01", 10**6)
    refused = 0
    for _ in range(250):
        spoiled = json.loads(text)
        *path, last = chance.choice(places)
        parent = spoiled
        for key in path:
            parent = parent[key]
        kind = chance.random()
        if kind < 0.15 and isinstance(parent, dict):
            del parent[last]
        elif kind < 0.3 and isinstance(parent, dict):
            parent["surprise"] = 1
        else:
            parent[last] = chance.choice(wrong)
        valid = oracle.is_valid(spoiled)
        refused += not valid
        try:
            check_report(spoiled)
        except StateError:
            assert not valid, (path, last)
        else:
            assert valid, (path, last)
    assert 50 < refused < 250


def test_readers_ignore_keys_of_later_versions_and_writers_may_not_use_them(report) -> None:
    report["findings"][0]["later"] = 1
    check_report(report, strict=False)
    with pytest.raises(StateError, match=r"no key 'later' at \$\.findings\[0\]"):
        check_report(report)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True])
def test_numbers_are_finite_and_truth_values_are_no_numbers(report, value) -> None:
    report["sites"][0]["values"]["spread"]["value"] = value
    with pytest.raises(StateError, match=r"at \$\.sites\[0\]\.values\.spread\.value"):
        check_report(report)
