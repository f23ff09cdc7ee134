"""``sonde scan`` as a gate: thresholds, silenced codes, baselines, terminals, privacy."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro

from cli_case import run_words
from sonde.cli.commands import COMMANDS
from sonde.cli.scan import parse_thresholds
from sonde.core.errors import InputError
from sonde.findings.catalogue import rule_classes
from sonde.report import to_text
from sonde.report.gate import codes_reaching, parse_gate
from sonde.run.passes import ranges


def test_json_on_stdout_is_the_saved_report(run, place, report):
    ran = run("scan", "-", place / "rows.npz", "--json", "-o", place / "again.json")
    saved = json.loads((place / "again.json").read_text())
    saved.pop("hash")
    assert ran.json() == saved
    assert saved["schema"] == "sonde-scan/1"
    for name in ("findings", "checks", "sites", "verdict", "similarity"):
        assert saved[name] == report[name]
    assert {c["code"] for c in saved["checks"]} == rule_classes().keys()
    assert not [c for c in saved["checks"] if c["state"] == "failed"]


def test_terminal_text_fits_and_has_no_colour_in_a_pipe(run, place, monkeypatch):
    ran = run("scan", "-", place / "half_nan.npz", "-v")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    from sonde.cli.console import use_color

    assert not use_color(False)
    monkeypatch.delenv("NO_COLOR")
    assert not use_color(True)


@pytest.mark.parametrize(("columns", "widest"), [(40, 40), (20, 40), (200, 80), (None, 80)])
def test_terminal_text_is_as_wide_as_the_terminal(run, place, monkeypatch, columns, widest):
    monkeypatch.setattr("sonde.cli._table.terminal_width", lambda: columns)
    monkeypatch.chdir(place)  # a path without blanks cannot be broken
    lines = run("scan", "-", "half_nan.npz").out.splitlines()
    assert max(map(len, lines)) == widest


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("error", 1),
        ("note", 1),
        ("SND001", 1),
        ("snd001", 1),
        ("SND005,SND001", 1),
        ("SND005", 0),
        ("SND011", 1),  # withheld: a gate that could not look must not pass
        ("never", 0),
    ],
)
def test_gates(half_nan, gate, code):
    assert bool(codes_reaching(half_nan, parse_gate(gate))) == bool(code)


@pytest.fixture(scope="module")
def half_nan(place):
    """The report of states that turn to NaN."""
    path = place / "half_nan.json"
    assert run_words("scan", "-", place / "half_nan.npz", "-o", path).code == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize(("gate", "code"), [("error", 1), ("SND005", 0)])
def test_a_gate_is_an_exit_code_and_says_why(run, place, gate, code):
    ran = run("scan", "-", place / "half_nan.npz", "--fail-on", gate)
    assert ran.code == code
    told = "failed by SND001" if code else "passed, no finding at this level is found"
    assert f"gate {gate}: {told}" in ran.err


def test_a_gate_says_what_had_nothing_to_look_at(run, place):
    words = ["scan", "-", place / "rows.npz", "--fail-on"]
    ran = run(*words, "SND005,SND001")
    assert ran.code == 0
    assert "found; does not apply here: SND005: no model was run\n" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SND051"], "SND051 compares two data sets. Name the other: --versus OTHER."),
        (["snd011", "--only", "SND001"], "SND011 is not among the checks of --only. Add it."),
    ],
)
def test_a_gate_on_a_check_that_would_not_run_is_refused(run, place, words, said):
    ran = run("scan", "-", place / "rows.npz", "--fail-on", *words)
    assert ran.code == 2
    assert said in ran.error()


@pytest.mark.slow
def test_a_silenced_code_does_not_count(run, place):
    words = ["scan", "-", place / "half_nan.npz", "--fail-on", "error", "--json"]
    silenced = run(*words, "--ignore", "SND001")
    assert silenced.code == 0
    assert [f["ignored"] for f in silenced.json()["findings"] if f["code"] == "SND001"] == [True]
    assert silenced.json()["verdict"]["error"] == 0
    assert run(*words, "--ignore", "SND001@b").code == 0
    assert run(*words, "--ignore", "SND001@a").code == 1


def test_only_runs_the_named_codes(run, place):
    found = run("scan", "-", place / "rows.npz", "--json", "--only", "SND001", "SND041").json()
    assert {c["code"] for c in found["checks"]} == {"SND001", "SND041"}


def test_moved_thresholds_change_the_verdict_and_are_printed(run, place):
    words = ["scan", "-", place / "rows.npz", "--json"]
    found = run(*words, "--set", "SND009.warning=1000").json()
    finding = next(f for f in found["findings"] if f["code"] == "SND009")
    assert finding["level"] == "warning"
    assert "warning = 1000" in finding["how"]
    assert found["provenance"]["thresholds"] == {"SND009.warning": 1000}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "knn.kk=3"], "no finding has the code 'KNN'"),
        (["--set", "SND009.warnings=3"], "no threshold 'warnings'. Did you mean warning"),
        (["--ignore", "SND900"], "no finding has the code 'SND900'"),
        (["--only", "SND900"], "no finding has the code 'SND900'"),
        (["--detectors", "nac", "--versus", "sonde:digits/test", "--set", "A.b=1"], "code 'A'"),
    ],
)
def test_codes_and_thresholds_are_checked_before_a_model_is_loaded(run, monkeypatch, words, said):
    def loads(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("sonde.data.load", loads)
    assert said in run("scan", "sonde:digits", "sonde:digits/test", *words).error()


def test_what_is_withheld_is_counted_once_causes_are_settled(half_nan):
    found = half_nan
    finding = next(f for f in found["findings"] if f["code"] == "SND009")
    withheld = {c["code"] for c in found["checks"] if c["state"] == "withheld"}
    named = set(re.findall(r"SND\d{3}", finding["sentence"]))
    assert named
    assert named <= withheld


@pytest.mark.slow
def test_a_baseline_lets_only_new_findings_count(run, place, tmp_path):
    old = tmp_path / "old.json"
    words = ["scan", "-", place / "half_nan.npz", "--fail-on", "error"]
    assert run(*words, "-o", old).code == 1
    same = run(*words, "--baseline", old)
    assert same.code == 0
    assert f"since {old}: no finding is new, worse or gone" in " ".join(same.err.split())
    fine = tmp_path / "fine.json"
    assert run("scan", "-", place / "rows.npz", "-o", fine).code == 0
    assert run(*words, "--baseline", fine).code == 1
    without_gate = run(*words[:3], "--baseline", fine)
    assert without_gate.code == 0
    assert re.search(r"since \S+: new: (\S+, )*SND001", " ".join(without_gate.err.split()))
    assert "old" in run(*words, "--baseline", tmp_path / "old2.json").error()


@pytest.mark.slow
def test_two_reports_are_compared(run, place, tmp_path):
    for name in ("rows", "half_nan"):
        run("scan", "-", place / f"{name}.npz", "-o", tmp_path / f"{name}.json")
    pair = [tmp_path / "rows.json", tmp_path / "half_nan.json"]
    ran = run("scan", "--diff", *pair, "-o", tmp_path / "diff.html")
    assert ran.code == 0, ran.err
    assert "SND001" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert (tmp_path / "diff.html").read_text().startswith("<!")
    assert run("scan", "--diff", *pair, "--json").json()


@pytest.mark.slow
def test_two_data_sets_are_told_apart(run, place, tmp_path):
    ran = run("scan", "-", place / "rows.npz", "--versus", place / "other.npz", "--json",
              "-o", tmp_path / "r.html")  # fmt: skip
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["versus"] is not None
    assert "SND051" in {f["code"] for f in found["findings"]}
    assert_parse(found["findings"])
    assert (tmp_path / "r.html").stat().st_size < 5 * 2**20
    assert not list(tmp_path.glob("*.run"))


def test_the_same_data_twice_is_refused(run, place):
    line = run("scan", "-", place / "rows.npz", "--versus", place / "rows.npz").error()
    assert "hold the same examples" in line


def test_next_steps_are_commands_that_parse(report, half_nan):
    assert_parse([*report["findings"], *half_nan["findings"]])


def assert_parse(findings):
    """Check that the next step of every finding is a command with flags that exist."""
    steps = {part for f in findings for part in f["next"].split(" && ")}
    assert steps
    for step in steps:
        words = shlex.split(step)
        assert words[0] == "sonde"
        assert words[1] in COMMANDS, step
        tyro.cli(
            COMMANDS[words[1]],
            args=words[2:],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )


CANARY = "zyxcanary"


@pytest.fixture(scope="module")
def secret_texts(tmp_path_factory):
    """A tiny language model, and texts that hold a word nobody may print."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from sonde.data import shipped

    folder = tmp_path_factory.mktemp("private")
    models = Path(shipped.__file__).parent / "models"
    tokenizer = AutoTokenizer.from_pretrained(models / "stdlib")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefgh "))
    texts = [CANARY + "".join(rng.choice(letters, rng.integers(5, 40))) for _ in range(80)]
    texts += texts[:3]
    rows = [
        {"text": t, "label": i % 2, "id": f"person-{i}-{CANARY[3:]}"} for i, t in enumerate(texts)
    ]
    for name, kept in (("texts", ("text", "label")), ("named", ("text", "label", "id"))):
        lines = [json.dumps({k: r[k] for k in kept}) for r in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_no_input_leaves_by_default(run, secret_texts, tmp_path, caplog):
    model, data = secret_texts / "model", secret_texts / "texts.jsonl"
    scanned = run("scan", model, data, "-o", tmp_path / "r.html", "--json")
    assert scanned.code == 0, scanned.err
    fitted = run("fit", "mahalanobis,knn(k=5)", model, data, "-o", tmp_path / "p.sonde")
    assert fitted.code == 0, fitted.err
    scored = run("score", tmp_path / "p.sonde", model, data, "-o", tmp_path / "s.csv", "--json")
    assert scored.code == 0, scored.err
    said = [text for ran in (scanned, fitted, scored) for text in (ran.out, ran.err)]
    said += [caplog.text, to_text(scanned.json(), verbose=True)]
    for text in said:
        assert CANARY not in text
    for path in tmp_path.iterdir():
        assert CANARY.encode() not in path.read_bytes(), path.name


@pytest.mark.slow
def test_a_page_shows_inputs_unless_told_not_to(run, secret_texts, tmp_path):
    words = ["scan", secret_texts / "model", secret_texts / "texts.jsonl", "--only", "SND041"]
    words += ["-o", tmp_path / "r.html"]
    shows = [run(*words, *more).code == 0 and CANARY in (tmp_path / "r.html").read_text()
             for more in ([], ["--no-inputs"], ["--hash-ids"])]  # fmt: skip
    assert shows == [True, False, False]
    assert "exclude each other" in run(*words, "--no-inputs", "--show-inputs").error()


@pytest.mark.slow
def test_ids_are_hashed_on_demand(run, secret_texts, tmp_path):
    words = ["scan", secret_texts / "model", secret_texts / "named.jsonl", "--json"]
    shown = run(*words)
    assert shown.code == 0, shown.err
    assert CANARY[3:] in shown.out
    hashed = run(*words, "--hash-ids", "-o", tmp_path / "r.html")
    assert hashed.code == 0, hashed.err
    for text in (
        hashed.out,
        hashed.err,
        to_text(hashed.json(), verbose=True),
        (tmp_path / "r.html").read_text(),
    ):
        assert CANARY[3:] not in text


def test_the_report_says_what_was_typed(run, place, tmp_path):
    words = ["scan", "-", str(place / "plain.npz"), "--limit", "60", "--json"]
    assert shlex.split(run(*words).json()["provenance"]["command"]) == ["sonde", *words]


def test_gates_are_words_or_codes():
    assert parse_gate(None) == parse_gate("never") == ()
    assert parse_gate("error, snd011") == ("error", "SND011")
    assert parse_thresholds(("SND011.warning=0.6", "snd011.error=2")) == {
        "SND011": {"warning": 0.6, "error": 2.0}
    }


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("accuracy<.95", "accuracy 0.9 < .95"),
        ("accuracy<.85", None),
        ("loss>1.2", "loss 1.3 > 1.2"),
        ("loss>1.4", None),
        ("error>3", "error > 3 (not known; known: accuracy, loss)"),
    ],
)
def test_limits_of_the_answers_are_gates(gate, said):
    losses = [{"right": True, "loss": 0.6}, {"right": False, "loss": 2.0}]
    answers = {"measure": "accuracy", "value": 0.9}
    rows = {"answers": [*losses, {"right": None, "loss": None}]}
    report = {"findings": [], "checks": [], "answers": answers, "rows": rows}
    assert parse_gate(gate) == (gate,)
    assert codes_reaching(report, (gate,)) == ([] if said is None else [said])
    with pytest.raises(InputError, match="expected a level, a code or a limit"):
        parse_gate("accuracy=.9")


@pytest.mark.parametrize(
    ("level", "gate", "expected"),
    [
        ("note", "note", True),
        ("note", "warning", False),
        ("warning", "warning", True),
        ("warning", "error", False),
        ("error", "note", True),
    ],
)
def test_levels_are_ordered(level, gate, expected):
    report = {"findings": [{"code": "SND011", "level": level, "ignored": False}], "checks": []}
    assert bool(codes_reaching(report, (gate,))) is expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--detectors knn", "Name it with --versus OTHER"),
        ("--versus other.npz --detectors covariance", "expected detectors"),
        ("--versus other.npz --detectors knn,knn(k=9)", "each detector once"),
        ("--versus other.npz --detectors knn,msp", "'logits'"),
    ],
)
def test_detectors_that_make_no_sense_are_refused(run, place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    assert said in run("scan", "-", "rows.npz", *words.split()).error()


@pytest.mark.slow
def test_chosen_detectors_tell_the_data_apart(run, place):
    words = ["scan", "-", place / "rows.npz", "--versus", place / "other.npz", "--json"]
    ran = run(*words, "--detectors", "mahalanobis,knn")
    found = {(d["method"], d["site"]): d["auroc"] for d in ran.json()["versus"]["detectors"]}
    assert set(found) == {(m, site) for m in ("Mahalanobis", "KNN") for site in "ab"}
    assert found["Mahalanobis", "a"] > 0.99
    assert found["KNN", "b"] > 0.6


@pytest.mark.slow
@pytest.mark.truth("numpy's unique over the rows of the file")
def test_rows_that_findings_count_are_written_whole(run, place, tmp_path):
    x = np.load(place / "rows.npz")["a"]
    x = np.concatenate([x, x[:120]])
    np.savez(tmp_path / "twice.npz", a=x)
    file = tmp_path / "rows.csv"
    ran = run("scan", "-", tmp_path / "twice.npz", "--only", "SND041", "--rows", file)
    assert ran.code == 0, ran.err
    lines = list(csv.DictReader(file.open()))
    _, inverse, count = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    others = [line for line in lines if not line["code"]]
    assert {int(line["row"]) for line in others} == set(np.flatnonzero(count[inverse] == 1))
    lines = lines[: len(lines) - len(others)]
    assert {line["code"] for line in lines} == {"SND041"}
    assert sorted(int(line["row"]) for line in lines) == np.flatnonzero(count[inverse] > 1).tolist()
    for line in lines:
        mine = int(line["row"])
        assert float(line["figure"]) == count[inverse][mine]
        other = int(line["partner_row"])
        assert other != mine
        assert (x[other] == x[mine]).all()
    run("scan", "-", tmp_path / "twice.npz", "--only", "SND041", "--rows", tmp_path / "r.parquet")
    assert pq.read_table(tmp_path / "r.parquet").column_names == list(lines[0])


@pytest.mark.slow
def test_what_changed_against_an_older_model_follows_the_scan(run, place):
    page = place / "changed.html"
    words = ["scan", "sonde:digits", "sonde:digits/test", "--limit", "24", "--only", "SND001"]
    ran = run(*words, "--versus-model", "sonde:digits", "-o", page)
    assert "Every state is the same" in ran.out
    assert "Layer by layer" in ran.out
    text = page.read_text()
    assert '<section id="versus_model"' in text
    assert "sonde-compare/1" in text
    unread = place / "unread.html"
    lacking = run(*words, "--versus-model", place / "nosuch", "-o", unread)
    assert "no such model directory" in lacking.error()
    assert not unread.exists()
    assert not unread.with_suffix(".run").exists()
    refused = run("scan", "-", place / "rows.npz", "--versus-model", "sonde:digits")
    assert "expected a model and data" in refused.error()


@pytest.mark.slow
def test_answers_of_a_scan_that_was_cut_are_not_said_to_have_no_labels(run, tmp_path, monkeypatch):
    observe, n = ranges.observe_unit, iter(range(9))

    def stopping(*given, **how):
        if next(n) == 1:
            raise KeyboardInterrupt
        return observe(*given, **how)

    monkeypatch.setattr(ranges, "observe_unit", stopping)
    words = ("--limit", 3, "--max-length", 40, "--unit-size", 1, "-o", tmp_path / "a.json")
    ran = run("scan", "sonde:stdlib", "sonde:stdlib/test", *words)
    assert ran.code == 130
    assert "answers  not judged: stopped by Ctrl-C before the forward passes" in ran.out
    checks = {c["code"]: c for c in json.loads((tmp_path / "a.json").read_text())["checks"]}
    for code in ("SND012", "SND026", "SND037", "SND066"):  # need the model's own answers
        assert checks[code]["state"] == "withheld"
        assert "stopped by Ctrl-C" in checks[code]["reason"]
    assert checks["SND031"]["reason"] == "the data have no labels"
