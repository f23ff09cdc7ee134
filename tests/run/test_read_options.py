"""``sonde.read`` is told of options that it does not know."""

import pytest
from torch import nn

import sonde
from sonde.core.errors import InputError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"site": "0"}, "Did you mean sites"),
        ({"tokenizer": object()}, "processor="),
        ({"device": "cpu"}, r"sonde\.load"),
        ({"label_columns": "y"}, "label_column"),
        ({"beams": 2}, "no option 'beams'"),
        ({"banana": 1}, "no option 'banana'"),
    ],
)
@pytest.mark.parametrize("verb", [sonde.read, sonde.scan])
def test_an_unknown_option_is_named(verb, options, said):
    with pytest.raises(InputError, match=said):
        verb(nn.Linear(2, 3), [[0.0, 1.0], [1.0, 0.0]], **options)


@pytest.mark.slow
def test_a_scan_keeps_silent(capsys):
    report = sonde.scan("sonde:digits", "sonde:digits/test", limit=16, progress=False)
    assert report.json()["schema"] == "sonde-scan/1"
    assert capsys.readouterr().err == ""
