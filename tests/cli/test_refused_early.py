"""What depends on the model, its folder, the flags or the output is refused before data are read.

The data of each command are not there: a command that read them first would say so.
"""

import re

import pytest

from cli_case import run_words

CONTRAST = "--positive no.txt --negative no.txt"
FULL, NOWHERE = "cannot write .*full: it is not empty", "there is no folder"
CASES = {
    "compress FULL": ("compress sonde:digits no.csv --to 4bit -o full", FULL),
    "compress page": ("compress sonde:digits no.csv -o new --report no/x.html", NOWHERE),
    "compress rank": (
        "compress sonde:digits no.csv --to rank60 --layers *fc1 -o new",
        "expected a rank of at most 42",
    ),
    "train FULL": (
        "train sonde:digits no.csv --insert adapter(width=3)@blocks.1 -o full",
        FULL,
    ),
    "train layer": ("train no no.csv --insert readout@conv1 -o new", "one site, starts as the"),
    "train place": (
        "train sonde:digits no.csv --insert adapter(width=3)@conv1 -o new",
        "expected a module, got 'conv1'",
    ),
    "ablate page": (f"edit ablate sonde:stdlib {CONTRAST} -o new --report x.txt", "--report"),
    "ablate FULL": (f"edit ablate sonde:stdlib {CONTRAST} -o full", FULL),
    "steer page": (f"edit steer sonde:stdlib {CONTRAST} -o new --report no/x.html", NOWHERE),
    "steer site": (
        f"edit steer sonde:stdlib {CONTRAST} --neutral sonde:code -o new --site norm",
        "does not fold at",
    ),
    "erase site": (
        f"edit erase sonde:stdlib {CONTRAST} --neutral sonde:code --site layers.1 -o new",
        "does not fold at",
    ),
    "forget page": ("edit forget sonde:digits --forget no -o new --report no/x.html", NOWHERE),
    "forget flags": ("edit forget sonde:digits --forget no -o new", "expected --retain"),
    "backdoor page": ("edit find-backdoor sonde:digits no --report no/x.html", NOWHERE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_command_refuses_before_it_reads_data(tmp_path, monkeypatch, case):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    monkeypatch.chdir(tmp_path)
    words, message = CASES[case]
    ran = run_words(*words.split())
    assert ran.code == 2
    assert re.search(message, ran.err), ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
