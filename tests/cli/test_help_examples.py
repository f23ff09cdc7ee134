"""The example of every page of help runs, with few examples where a command can be told so."""

import inspect
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.cli_case import run_words

from sonde.cli.commands import COMMANDS, SECOND
from sonde.cli.edits import EDITS

RUN_ELSEWHERE = {"serve": "tests/docs/test_serving_page.py", "study": "tests/studies"}
DIGITS = "sonde:digits sonde:digits/test"
FIRST = {
    "calibrate": ["fit mahalanobis sonde:digits sonde:digits/train -o probe.sonde --limit 64"],
    "score": ["fit mahalanobis sonde:digits sonde:digits/train -o probe.sonde --limit 64"],
    "info": ["fit mahalanobis sonde:digits sonde:digits/train -o probe.sonde --limit 64"],
    "merge": ["fit mahalanobis - a.npz -o a.sonde", "fit mahalanobis - b.npz -o b.sonde"],
    "drift": ["fit mahalanobis - a.npz -o a.sonde", "fit mahalanobis - b.npz -o b.sonde"],
    "evaluate": [
        "fit knn - a.npz -o a.sonde",
        "score a.sonde - a.npz -o usual.parquet",
        "score a.sonde - b.npz -o unusual.parquet",
    ],
    "export": [f"read {DIGITS} --sites blocks -o acts --limit 32"],
    "verify": [f"read {DIGITS} --sites blocks -o acts --limit 32"],
    "decode": ["encode notes.txt --model sonde:stdlib"],
    "edit judge": ["edit merge sonde:stdlib sonde:stdlib -o NEW --method ties"],
    "edit undo": ["compress sonde:digits sonde:digits --to 8bit --method rtn -o NEW"],
    "compress undo": ["compress sonde:digits sonde:digits --to 8bit --method rtn -o NEW"],
}
"""Commands that write what an example reads."""


def example_of(command: type) -> str:
    """Return the command line of the example of a page of help."""
    found = re.search(r"^Example: (.+?)(?:\n\n|\Z)", inspect.getdoc(command) or "", re.M | re.S)
    assert found is not None, command
    return " ".join(found[1].split()) if '"' not in found[1] else found[1].replace("\n", " ")


KNOWN = {
    **COMMANDS,
    **{f"edit {word}": command for word, command in EDITS.items()},
    **{f"{word} {second}": c for word, more in SECOND.items() for second, c in more.items()},
}


def test_every_page_of_help_has_an_example():
    missing = [word for word, command in KNOWN.items() if "sonde " not in example_of(command)]
    assert missing == []
    assert Counter(word.partition(" ")[0] for word in KNOWN)["edit"] >= 9


def make_files() -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    for name, far in (("a", 0.0), ("b", 1.5)):
        np.savez(f"{name}.npz", x=(draw.normal(size=(150, 6)) + far).astype("f4"))
    y = np.arange(150) % 3
    x = draw.normal(size=(150, 6)) + 4 * np.eye(6)[y]
    np.savez("labels.npz", x=x, y=np.where(np.arange(150) < 9, (y + 1) % 3, y))
    Path("notes.txt").write_text("def read(path):\n    return open(path).read()\n" * 3)


def make_track() -> None:
    import sonde
    from sonde.measure import ParticipationRatio
    from sonde.run.training.callback import Recorder

    probe = [{"x": row} for row in torch.randn(40, 5)]
    net = torch.nn.Linear(5, 3)
    recorder = Recorder(ParticipationRatio(), probe, "run.track", sites=[""])
    for step in (0, 10):
        recorder.record(net, step)
    assert sonde.Track(Path("run.track")).steps == (0, 10)


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted(set(KNOWN) - set(RUN_ELSEWHERE)))
def test_the_example_runs(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_files()
    if word == "track":
        make_track()
    for command in FIRST.get(word, ()):
        ran = run_words(*shlex.split(command))
        assert ran.code == 0, (command, ran.err)
    words = few_rows(word, shlex.split(example_of(KNOWN[word]))[1:])
    ran = run_words(*words)
    assert ran.code == 0, (words, ran.err)
    assert (ran.out + ran.err).strip()
    if "-o" in words:
        assert (tmp_path / words[words.index("-o") + 1]).exists()
    assert not list(tmp_path.glob("*.run"))


def few_rows(word: str, words: list[str]) -> list[str]:
    """Return the words of an example, told to take few rows or short texts where they can be."""
    flags = run_words(*word.split(), "--help").out
    if word == "cache":  # every rule at every budget over 32 texts takes minutes
        return [*words, "--limit", "4", "--rules", "streaming_cache"]
    if word == "train":
        return [*words, "--epochs", "1", "--limit", "240"]
    few = [("--limit", "8" if word.startswith("edit ") else "64")]
    if word.startswith("edit ") and "--limit" in words:  # so few rows may do no more than chance
        few += [("--max-length", "16"), ("--force",)]
    return [*words, *(x for option in few if option[0] in flags for x in option)]
