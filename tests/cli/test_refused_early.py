"""What depends on the model, its folder, the flags or the output is refused before data are read.

The data of each command are not there: a command that read them first would say so.
"""

import json
import re

import pytest

from cli_case import run_words

CONTRAST = "--positive no.txt --negative no.txt"
FULL, NOWHERE = "cannot write .*full: it is not empty", "there is no folder"
ADDRESS = "bucket/a.*: expected a path on this machine, got an address"
CASES = {
    "read address": ("read sonde:digits no.csv -o ftp://bucket/acts", ADDRESS),
    "compress address": ("compress sonde:digits no.csv --to 4bit -o gs://bucket/a", ADDRESS),
    "serve address": ("serve sonde:digits --log az://bucket/a", ADDRESS),
    "steer address": (f"edit steer sonde:digits {CONTRAST} -o s3://bucket/a", ADDRESS),
    "read only address": (
        "read sonde:digits no.csv -o https://bucket/acts",
        "expected a place that can be written, got one that is only read",
    ),
    "data address": ("read sonde:digits ftp://bucket/a/b -o acts", ADDRESS),
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
    "train scope": (
        "train sonde:digits no.csv --insert adapter(width=3)@blocks.1 --scope top:99 -o new",
        "expected top:1 to top:4 for the 4 blocks",
    ),
    "train rank": (
        "train sonde:digits no.csv --insert adapter(width=3)@blocks.1 --scope low-rank:65 -o new",
        "expected low-rank:1 to low-rank:64 for the linear layers",
    ),
    "train limit": (
        "train no no.csv --insert experts@blocks.1 --limit 0 -o new",
        "--limit: expected more than 0, got 0",
    ),
    "compress limit": ("compress no no.csv --to 4bit --limit 0 -o new", "--limit: expected at"),
    "compress held": ("compress no no.csv --to 4bit --held 0 -o new", "--held: expected at"),
    "compress none": ("compress no no.csv --to 0% -o new", "expected to remove more than 0 %"),
    "compress ranks": ("compress sonde:digits no.csv --to rank999 -o new", "at most 42, got 999"),
    "cache limit": ("cache no no.csv --limit 0", "--limit: expected at least 1, got 0"),
    "attention limit": ("edit attention no no.csv --limit 0", "--limit: expected at least 1"),
    "steer strength": (
        f"edit steer no {CONTRAST} --strength nan -o new",
        "--strength: expected a finite number, got nan",
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


KINDS = {
    "classifier": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    "images": {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
    "sentences": {"model_type": "bert", "architectures": ["BertModel"]},
}
FACT = ("--prompt", "a b", "--subject", "a", "--target", " c", "-o", "new")
LANGUAGE_COMMANDS = {
    "cache": ("cache", "MODEL", "no.csv"),
    "generate": ("generate", "MODEL", "a text"),
    "amateur": ("generate", "sonde:stdlib", "a", "--decode", "contrastive", "--amateur", "MODEL"),
    "trace": ("trace", "MODEL", "--clean", "a", "--corrupt", "b", "--answer", "c"),
    "encode": ("encode", "text.py", "--model", "MODEL"),
    "rewrite-fact": ("edit", "rewrite-fact", "MODEL", "no.csv", *FACT),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", LANGUAGE_COMMANDS)
def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(
    tmp_path, monkeypatch, kind, command
):
    (tmp_path / "text.py").write_text("x = 1")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(KINDS[kind]))  # and no weights at all
    if kind == "sentences":
        (folder / "modules.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    words = ["model" if word == "MODEL" else word for word in LANGUAGE_COMMANDS[command]]
    ran = run_words(*words)
    assert ran.code == 2
    assert "expected a" in ran.err
    named = "SentenceEncoder" if kind == "sentences" else KINDS[kind]["architectures"][0]
    assert f"got {named}" in ran.err
    assert ran.err.count("\n") == 1


def test_a_language_model_without_weights_is_refused_for_its_weights(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    assert "has no *.safetensors" in run_words("cache", tmp_path, "no.csv").error()


@pytest.mark.parametrize(
    "command",
    [
        "scan no sonde:digits/test",
        "compress no sonde:digits/test -o new",
        "explain no sonde:digits",
    ],
)
def test_a_missing_file_of_class_names_is_refused_before_a_model_is_loaded(tmp_path, command):
    first, *rest = command.split()
    ran = run_words(first, *rest, "--classes", tmp_path / "names.txt")
    assert "names of classes: no such file" in ran.error()
