"""Every command on a file that is empty, holds a header or one row, is a folder or is binary.

Each either works or ends with one sentence that names no class of Python.
"""

import random
import re
from pathlib import Path

import pytest

from cli_case import run_words
from sonde.cli.commands import COMMANDS
from sonde.cli.edits import EDITS

NONE = {"methods", "recipe", "study", "completion", "serve"}
"""Commands without a file, and serve, whose process is tested by itself."""
WORDS = {
    "scan - FILE -o NEW.json": ".npz .csv .safetensors",
    "scan sonde:digits FILE -o NEW.json": ".csv .jsonl .parquet",
    "scan sonde:stdlib FILE -o NEW.json": ".csv .txt",
    "scan - rows.npz --versus FILE -o NEW.json": ".npz",
    "scan FILE rows.npz -o NEW.json": ".safetensors .gguf",
    "read sonde:stdlib FILE -o NEW": ".csv .jsonl",
    "fit mahalanobis - FILE -o NEW.sonde": ".npz .csv .parquet",
    "calibrate FILE - rows.npz -o NEW.sonde": ".sonde",
    "calibrate probe.sonde - FILE -o NEW.sonde": ".npz",
    "score FILE - rows.npz": ".sonde",
    "score probe.sonde - FILE": ".npz .csv",
    "evaluate FILE FILE -o NEW.html": ".csv .jsonl .parquet",
    "merge FILE FILE -o NEW.sonde": ".sonde",
    "labels FILE": ".csv .npz .safetensors",
    "drift FILE FILE -o NEW.html": ".sonde .csv",
    "compare sonde:digits sonde:digits FILE -o NEW.html": ".csv .npz",
    "track FILE -o NEW.html": ".csv",
    "train sonde:digits FILE --terms rate_reduction --sites blocks.1 -o NEW": ".csv",
    "explain sonde:digits FILE -o NEW.html": ".csv .png",
    "trace sonde:stdlib --pairs FILE -o NEW.html": ".jsonl",
    "units sonde:digits FILE --sites vit.layers.1 -o NEW.html": ".csv",
    "cache sonde:stdlib FILE --limit 1": ".jsonl",
    "generate sonde:stdlib FILE --max-tokens 2": ".txt .jsonl",
    "compress sonde:digits FILE -o NEW": ".csv",
    "encode FILE --model sonde:stdlib -o NEW.sonde": ".txt",
    "decode FILE -o NEW": ".sonde .bin",
    "info FILE": ".sonde .csv .npz .safetensors .json .parquet",
    "verify FILE": ".sonde .csv",
    "export FILE -o NEW.parquet": ".sonde",
    "edit ablate sonde:stdlib --positive FILE --negative FILE -o NEW": ".csv",
    "edit attention sonde:stdlib FILE": ".csv",
    "edit erase sonde:digits FILE --site vit.layers.1.mlp.fc1 -o NEW": ".csv",
    "edit find-backdoor sonde:digits FILE": ".csv",
    "edit forget sonde:digits --forget FILE --retain FILE -o NEW": ".csv",
    "edit judge FILE FILE": ".json",
    "edit merge FILE FILE -o NEW": ".safetensors",
    "edit rewrite-fact sonde:stdlib sonde:code --facts FILE -o NEW": ".jsonl",
    "edit steer sonde:stdlib --positive FILE --negative FILE -o NEW": ".csv",
    "edit undo FILE -o NEW": ".safetensors",
}
"""Commands by the endings of their file."""
HEADERS = {".jsonl": "\n", ".json": "{}", ".txt": "\n", ".toml": "# none\n"}
ROWS = {
    ".jsonl": '{"text": "hello"}\n',
    ".json": '{"a": 1}',
    ".txt": "hello\n",
    ".toml": "a = 1\n",
}
RAW = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|\bErrno\b|Traceback|(?<!\.)\.\.(?![./])|: None\b")


def write(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(random.Random(0).randbytes(400))
    elif kind == "header":
        path.write_text(HEADERS.get(path.suffix, "a,b,label\n"))
    else:
        path.write_text(ROWS.get(path.suffix, "a,b,label\n1,2,x\n") if kind == "row" else "")


def test_every_command_has_a_file():
    first = {words.split()[0] for words in WORDS}
    assert first == COMMANDS.keys() - NONE | {"edit"}
    assert {words.split()[1] for words in WORDS if words.startswith("edit ")} == EDITS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("words", WORDS)
def test_an_odd_file_is_told_in_one_sentence(words, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.npz", "probe.sonde"):
        (tmp_path / name).symlink_to(place / name)
    wrong = {}
    for suffix in WORDS[words].split():
        for kind in ("empty", "header", "row", "folder", "binary"):
            file = tmp_path / f"{kind}{suffix}"
            write(file, kind)
            typed = words.replace("FILE", file.name).replace("NEW", f"{kind}{suffix}-new")
            ran = run_words(*typed.split())
            lines = [line for line in ran.err.splitlines() if not line.startswith("note: ")]
            is_error = ran.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
            read = kind in ("header", "row") or words.startswith(("encode", "verify"))
            works = read and ran.code in (0, 1)
            if not (is_error or works) or RAW.search(ran.err + ran.out):
                wrong[file.name] = (ran.code, ran.err, ran.out)
    assert wrong == {}
