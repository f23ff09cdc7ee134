"""Every command: its example, its help, its errors, what it prints and what it leaves behind."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from torch import nn

from sonde.cli.commands import COMMANDS, SECOND
from sonde.core import Edit, Explainer, Instrument, Judge
from sonde.core.cache_rule import CacheRule
from sonde.core.codec import Codec
from sonde.findings.catalogue import rule_classes
from sonde.run.instruments import listing
from sonde.run.instruments.catalogue import methods
from sonde.run.instruments.families import FAMILIES, FITTED
from sonde.run.instruments.listing import listed
from sonde.tap import Decode
from sonde.weights import MergeRule, Rewrite


@pytest.mark.parametrize("word", COMMANDS)
def test_help_shows_the_example(run, word):
    ran = run(word, "--help")
    assert ran.code == 0
    assert "Example:" in ran.out
    assert f"sonde {word}" in ran.out
    for flag in ("--json", "--no-color", "--debug", "--quiet"):
        assert flag in ran.out


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize(
    "words", ["scan --help", "fit -h", "calibrate -h", "scan --explain SND042"]
)
def test_help_is_as_wide_as_the_terminal(run, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(*words.split()).out
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("word", SECOND)
def test_help_names_the_commands_behind_a_command(run, word):
    text = " ".join(run(word, "--help").out.split())
    assert [second for second in SECOND[word] if f"sonde {word} {second} " not in text] == []


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_shows_five_commands_and_where_the_others_are(run, words):
    ran = run(*words)
    assert ran.code == 0
    assert sum(f"sonde {word} " in ran.out.partition("Example")[0] for word in COMMANDS) == 5
    assert "sonde more" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("words", [["more"], ["help", "more"]])
def test_more_shows_every_command(run, words):
    ran = run(*words)
    assert ran.code == 0
    assert all(f"sonde {word}" in ran.out for word in (*COMMANDS, "edit"))
    assert max(map(len, ran.out.splitlines())) <= 80


def test_version(run):
    from sonde import __version__

    assert run("--version").out == f"sonde-torch {__version__}\n"


def test_the_package_runs_as_a_module_too(run):
    words = [sys.executable, "-m", "sonde", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scam", "x", "y"], ["'scam'", "scan"]),
        (["fit", "mahalanobs", "-", "x.npz"], ["'mahalanobs'", "mahalanobis"]),
        (["fit", "knn(n=3)", "-", "x.npz"], ["'n'", "k"]),
        (["fit", "knn(k=open)", "-", "x.npz"], ["plain value"]),
        (["fit", "knn(k='a')", "-", "x.npz"], ["KNN"]),
        (["fit", "knn(", "-", "x.npz"], ["expected method names separated by commas"]),
        (["fit", "__import__('os')", "-", "x.npz"], ["METHODS"]),
        (["fit", "", "-", "x.npz"], ["at least one method"]),
        (["methods", "detects"], ["measure, detect"]),
        (["scan", "--explain", "SND0111"], ["SND0111", "SND011"]),
        (["scan"], ["expected MODEL and DATA"]),
        (["scan", "gpt2"], ["expected MODEL and DATA, got gpt2 alone. See"]),
        (["scan", "-", "rows.npz", "--only", "SND999"], ["SND999"]),
        (["scan", "-", "rows.npz", "--ignore", "SND99@a"], ["SND99"]),
        (["scan", "-", "rows.npz", "--set", "SND011.warn=1"], ["'warn'", "warning"]),
        (["scan", "-", "rows.npz", "--set", "SND011"], ["CODE.threshold=number"]),
        (["scan", "-", "rows.npz", "--fail-on", "warn"], ["'warn'", "warning"]),
        (["scan", "-", "rows.npz", "-o", "x.pdf"], [".html or .json", "x.pdf"]),
        (["scan", "-", "rows.npz", "--limit", "0"], ["--limit", "0"]),
        (["scan", "-", "rows.npz", "--batch-size", "many"], ["--batch-size", "many"]),
        (["scan", "-", "rows.npz", "--workers", "-1"], ["--workers"]),
        (["scan", "-", "rows.npz", "--unit-size", "0"], ["--unit-size"]),
        (["scan", "-", "rows.npz", "--memory", "lots"], ["--memory", "8GiB"]),
        (["scan", "-", "rows.npz", "-o", "r.json", "--resume"], ["nothing to resume"]),
        (["scan", "-", "rows.npz", "--memory", "1KB"], ["needs about", "--memory"]),
        (["read", "-", "rows.npz", "--unit-size", "0"], ["--unit-size"]),
        (["read", "-", "rows.npz", "--resume"], ["nothing to resume"]),
        (["fit", "knn", "-", "rows.npz", "--calibrate", "2"], ["held-out fraction"]),
    ],
)
def test_words_that_are_wrong_are_named(run, place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    line = run(*words).error()
    assert all(text in line for text in said), line
    assert sorted(place.iterdir()) == before


USAGE = {
    "scan a b --lmit 3": "unknown option --lmit. Did you mean --limit or --logits?",
    "scan a b --lmit=3": "unknown option --lmit. Did you mean --limit or --logits?",
    "scan a b --zzz": "unknown option --zzz.",
    "scan a b -x": "unknown option -x.",
    "scan a b --no-json": "unknown option --no-json. Did you mean --json?",
    "scan a b c": "unexpected words: c.",
    "scan a b --limit": "expected a whole number after --limit, got nothing.",
    "scan a b --limit x": "expected a whole number after --limit, got 'x'.",
    "scan a b --limit=x": "expected a whole number after --limit, got 'x'.",
    "scan a b --workers 1.5": "expected a whole number after --workers, got '1.5'.",
    "fit a b c --calibrate x": "expected a number after --calibrate, got 'x'.",
    "scan a b --long no": "expected one of auto, chunk, truncate, error after --long, got 'no'.",
    "scan a b --diff old.json": "expected 2 values after --diff, got 'old.json'.",
    "merge a b -o": "expected a value after --output, got nothing.",
    "fit": "expected METHODS MODEL.",
    "fit knn sonde:digits": "expected DATA.",
    "info": "expected FILE.",
}


@pytest.mark.parametrize("words", USAGE)
def test_wrong_usage_is_one_line(run, words):
    word = words.split()[0]
    line = run(*words.split()).error()
    assert line == f"error: sonde {word}: {USAGE[words]} See sonde {word} --help."


def test_methods_are_the_catalogue(run):
    entries = run("methods", "--json").json()
    fitted = {m["word"] for m in entries if m["kind"] in FITTED}
    assert fitted == methods().keys()
    kinds = {m["word"]: m["kind"] for m in entries}
    some = ("knn", "hotelling", "cka", "Clamp", "FinePrune", "Slerp", "UnMixNorm", "find_backdoor")
    assert [kinds.get(name) for name in some] == [
        *("detector", "shift", "measure", None, "rewrite", "merge rule", "layer", "function")
    ]
    text = run("methods").out
    assert all(f"  {m.name} " in text and m.summary in text for m in listed())
    assert "IntegratedGradients" in run("methods", "explain").out
    assert "steps : int" in run("methods", "IntegratedGradients").out
    assert {m["family"] for m in run("methods", "detect", "--json").json()} == {"detect"}
    (entry,) = run("methods", "--paper", "livne2025cmim", "--json").json()
    assert entry["class"] == "LatentTerms"
    assert "cmim: livne2025cmim" in run("methods", "train", "--paper", "cmim").out
    for words, name in (("BinT5 / CAPYBARA", "BinT5"), ("routing by MoHD", "MoHD")):
        assert run("methods", "--paper", words).out.startswith(f"{name}: ")
    for words in ("nobody", "/", "sae"):  # the latter begins the name of an author
        assert f"no method of a paper '{words}'" in run("methods", "--paper", words).err


def test_every_export_is_listed_or_is_a_result_a_base_or_a_part():
    listed_names = {(m.family, m.export) for m in listed()}
    words = {(m.family, m.name) for m in listed()}
    for family in FAMILIES:
        room = import_module(f"sonde.{family}")
        for name in room.__all__:
            found = getattr(room, name)
            is_class = isinstance(found, type)
            bases = (
                Instrument,
                Edit,
                Rewrite,
                Decode,
                Explainer,
                Judge,
                MergeRule,
                CacheRule,
                Codec,
                nn.Module,
            )
            is_method = is_class and (issubclass(found, bases) or bool(getattr(found, "paper", "")))
            is_method &= not inspect.isabstract(found)
            is_listed = (family, name) in listed_names | words
            assert is_listed == (is_method or inspect.isroutine(found)), (family, name)


def test_the_list_is_made_again_when_a_file_changes(tmp_path, monkeypatch):
    package = tmp_path / "sonde"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("x = 1")
    monkeypatch.setattr(listing.sonde, "__file__", str(package / "__init__.py"))
    first = listing.listed.__wrapped__()
    kept = package / "__pycache__" / "methods.json"
    planted = json.loads(kept.read_text())
    planted["methods"] = planted["methods"][:3]
    kept.write_text(json.dumps(planted))
    assert listing.listed.__wrapped__() == first[:3]
    (package / "b.py").write_text("y = 1")
    assert listing.listed.__wrapped__() == first
    kept.write_text("{")
    assert listing.listed.__wrapped__() == first


def test_a_kept_list_brings_nothing_heavy():
    listed()
    code = (
        "import sys; from sonde.run.instruments.listing import listed; "
        "print(len(listed()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(listed())), "False"]


def test_rows_without_a_label_are_said(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    for label, said in ((np.arange(80) % 2 * 2 - 1, "note: 40 of 80"), (np.arange(80) % 2, None)):
        np.savez(tmp_path / "rows.npz", x=x, label=label)
        ran = run("fit", "covariance", "-", tmp_path / "rows.npz", "-o", tmp_path / "p.sonde")
        assert ran.code == 0
        assert (f"{said} examples have no label" in ran.err) == (said is not None)


def test_a_loss_is_told_by_its_word_and_by_its_name(run):
    assert run("methods", "align").out == run("methods", "Align").out != ""


def test_one_method_is_told_with_its_parameters(run):
    told = run("methods", "knn").out
    assert "nearest neighbour" in told
    assert "k : int, default=50" in told
    assert "Examples" not in told
    (entry,) = run("methods", "knn", "--json").json()
    assert entry["parameters"] == {"k": "50", "m": "10000"}
    assert "Did you mean knn?" in run("methods", "kn").err


@pytest.mark.parametrize("width", [60, 100])
def test_methods_are_whole_in_a_terminal(run, monkeypatch, width):
    monkeypatch.setattr("sonde.cli.methods.terminal_width", lambda: width)
    text = run("methods").out
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert all(f"{m.word} {m.summary}" in words for m in methods().values())


@pytest.mark.parametrize("code", list(rule_classes()))
def test_every_code_is_explained(run, code):
    ran = run("scan", "--explain", code.lower())
    assert ran.code == 0
    assert ran.out.startswith(code)


@pytest.mark.slow
def test_fit_info_score_merge(run, place, tmp_path):
    ran = run("fit", "knn(k=5),spectrum", "-", place / "plain.npz", "-o", tmp_path / "a.sonde",
              "--json")  # fmt: skip
    assert ran.code == 0
    assert {r["method"] for r in ran.json()["results"]} == {"knn", "spectrum"}
    assert not list(tmp_path.glob("*.run"))
    facts = run("info", tmp_path / "a.sonde", "--json").json()
    assert (facts["n_units"], facts["kind"]) == (1, "fitted state")
    assert facts["methods"] == ["knn", "spectrum"]
    text = run("info", tmp_path / "a.sonde").out
    assert max(map(len, text.splitlines())) <= 80
    assert "120 examples, 1 unit\n" in text
    assert not re.search(r"[{}'\[\]]|[0-9a-f]{20}", text)
    words = ["fit", "knn(k=5),spectrum", "-", place / "more.npz", "-o", tmp_path / "b.sonde"]
    assert run(*words).code == 0
    both = run("merge", tmp_path / "a.sonde", tmp_path / "b.sonde", "-o", tmp_path / "c.sonde",
               "--json")  # fmt: skip
    assert both.json()["data"]["n_examples"] == 240
    out = tmp_path / "scores.parquet"
    ran = run("score", tmp_path / "c.sonde", "-", place / "more.npz", "-o", out, "--json")
    lines = [{k: v for k, v in line.items() if k != "flags"} for line in ran.json()]
    assert lines == parquet.read_table(out).to_pylist()
    text = run("score", tmp_path / "c.sonde", "-", place / "more.npz").out
    assert max(map(len, text.splitlines())) <= 80
    assert "knn" in text


def test_the_same_call_gives_the_same_file(run, place, tmp_path):
    for name in ("a", "b"):
        words = ["fit", "mahalanobis", "-", place / "rows.npz", "-o", tmp_path / f"{name}.sonde"]
        assert run(*words).code == 0
    assert (tmp_path / "a.sonde").read_bytes() == (tmp_path / "b.sonde").read_bytes()


def test_scores_that_are_infinite_are_null_in_json(run, place, tmp_path):
    import numpy as np

    x = np.load(place / "rows.npz")
    a = x["a"][:20].copy()
    a[3, 0] = np.inf
    np.savez(tmp_path / "t.npz", a=a, b=x["b"][:20])
    found = run("score", place / "probe.sonde", "-", tmp_path / "t.npz", "--each", "--json").json()
    null = [r for r in found if r["score"] is None]
    assert {r["site"] for r in null} == {"a"}
    assert len(null) == 2


def test_read_writes_rows_that_open_without_sonde(run, place, tmp_path):
    ran = run("read", "-", place / "rows.npz", "-o", tmp_path / "acts", "--json")
    assert ran.json()["tables"] == {"pooled": ["a", "b"]} or ran.json()["n_examples"] == 240
    files = [p for p in (tmp_path / "acts" / "rows").rglob("*.arrow")]
    assert all(pa.ipc.open_file(p).read_all().num_rows == 240 for p in files)
    assert run("info", tmp_path / "acts").code == 0


def test_quiet_prints_only_the_last_line(run, place, tmp_path):
    words = ["fit", "spectrum", "-", place / "rows.npz", "-o", tmp_path / "a.sonde", "--quiet"]
    ran = run(*words)
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    code = "import sys; from sonde.cli import main; sys.exit(main(['methods', '--json']))"
    words = shlex.join([sys.executable, "-c", code])
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} | head -1"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ran.stdout == "[\n"
    assert ran.stderr == ""
    assert ran.returncode == 0


def test_ctrl_c_says_how_to_go_on(run, place, tmp_path, monkeypatch):
    from sonde.engine.array_stream import ArrayStream

    original, asked = ArrayStream.batches, []

    def stopped(self, start, stop):
        asked.append(start)
        if len(asked) > 3:
            raise KeyboardInterrupt
        yield from original(self, start, stop)

    words = ["fit", "spectrum", "-", place / "rows.npz", "-o", tmp_path / "a.sonde",
             "--unit-size", "40"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(ArrayStream, "batches", stopped)
        ran = run(*words)
    assert ran.code == 130
    assert re.search(r"interrupted after \d of 6 units.*the same command continues", ran.err)
    assert not (tmp_path / "a.sonde").exists()
    other = run("fit", "spectrum", "-", place / "plain.npz", "-o", tmp_path / "a.sonde")
    assert "--fresh" in other.error()
    assert run(*words, "--resume").code == 0
    assert not list(tmp_path.glob("*.run"))
    assert json.loads(run("info", tmp_path / "a.sonde", "--json").out)["n_units"] == 6


@pytest.mark.parametrize("word", COMMANDS)
def test_help_names_words_and_no_types(run, word):
    text = run(word, "--help").out
    assert "(default: None)" not in text
    usage = text.splitlines()[0]
    assert "STR" not in usage
    assert "PATH STR" not in usage
    assert "{None}" not in text
    if word in ("scan", "read", "fit", "calibrate", "score"):
        assert "MODEL DATA" in usage


@pytest.mark.parametrize("words", [["crash_net:make"], ["crash_net:none", "--debug"]])
def test_no_error_ends_like_a_gate(run, tmp_path, monkeypatch, words):
    made = "def make():\n    raise RuntimeError('no such thing')\n\ndef none():\n    return 3\n"
    (tmp_path / "crash_net.py").write_text(made)
    monkeypatch.syspath_prepend(str(tmp_path))
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2), "f4"))
    ran = run("scan", words[0], tmp_path / "d.npz", *words[1:], "--fail-on", "error")
    assert ran.code == 2
    assert ran.err.startswith("Traceback")
    assert ran.err.rstrip().splitlines()[-1].partition(":")[0].endswith("Error")
