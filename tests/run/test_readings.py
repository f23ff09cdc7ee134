"""How to read a measure: every measure states its range, its direction and its null."""

import re

import numpy as np
import pytest

from sonde.cli._fitted import ROUNDING, measures_text
from sonde.core.instrument import Detector
from sonde.core.result import Result
from sonde.run.fitting.fitted_rows import fitted_rows
from sonde.run.instruments.catalogue import methods

INTERVAL = re.compile(r"[\[(]-?(?:inf|[\w./^ -]+), [^,]*?[\])]")
MEANING = re.compile(r"\b(?:higher|lower|-?[\d.]+|one half) = \w")


def test_every_measure_says_how_to_read_its_value():
    measures = {w: m.reading for w, m in methods().items() if not issubclass(m.cls, Detector)}
    assert len(measures) > 80
    silent = {w: t for w, t in measures.items() if not (INTERVAL.match(t) and MEANING.search(t))}
    assert silent == {}


def test_a_table_prints_error_null_and_range_of_each_measure():
    results = {
        ("cka", "a"): Result(value=0.98, se=4.8e-9, null=0.02, n=320, range=(0.0, 1.0)),
        ("two_nn", "b"): Result(value=5.0, se=0.2, n=320, range=(0.0, np.inf)),
    }
    text = measures_text(fitted_rows(results))
    head, *rows = text.splitlines()[:3]
    assert head.split() == ["measure", "site", "rows", "value", "se", "null", "range"]
    assert rows[0].split() == ["cka", "a", "320", "0.98", ROUNDING, "0.02", "0", "to", "1"]
    assert rows[1].split() == ["two_nn", "b", "320", "5", "0.2", "0", "to", "inf"]
    words = " ".join(text.split())
    assert "higher = more alike" in words.partition("Range: [0, 1]; ")[2]
    assert "~0 = below the rounding of the value" in words


@pytest.mark.parametrize("se", [1e-3, 0.0])
def test_errors_above_rounding_are_numbers(se):
    result = Result(value=0.98, se=se, n=320, range=(0.0, 1.0))
    assert ROUNDING not in measures_text(fitted_rows({("cka", "a"): result}))
