import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageFilter import GaussianBlur
from scipy.stats import ks_2samp
from sklearn.datasets import load_digits

from findings._evidence import evidence_of
from findings._nets import assert_raised
from findings._writing import GERMAN, docstrings
from sonde.data.images import picture_columns
from sonde.findings.codes.snd055 import SND055
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_measures import FORMS
from sonde.findings.evidence.versus.column_moves import column_comparison, moved_by_chance
from sonde.findings.evidence.versus.comparison import VersusEvidence
from sonde.findings.rule import Check

Table = Mapping[str, Sequence[Any]]


def _table(seed: int, n: int = 420) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    made: dict[str, Any] = {f"c{i}": draw.normal(3 + i, 0.3 + 0.2 * i, n) for i in range(6)}
    made["wage"] = draw.lognormal(2, 0.5, n)
    made["town"] = [("Ulm", "Bonn", "Kiel")[k] for k in draw.choice(3, n, p=(0.5, 0.3, 0.2))]
    made["note"] = [f"Row {k} came in at {k % 24} o'clock." for k in draw.integers(0, 9999, n)]
    made["name"] = [f"id{seed}-{k}" for k in range(n)]
    return made


def _side(table: Table) -> Evidence:
    n = len(table["c0"])
    inputs = tuple(name for name in table if name.startswith("c"))

    def rows(names: Sequence[str]) -> Any:
        return lambda examples: {k: [table[k][i] for i in examples] for k in names}

    facts = {"inputs": inputs, "key_columns": rows([k for k in table if k != "label"])}
    facts |= {"own_columns": rows([k for k in table if k not in (*inputs, "label")])}
    x = np.stack([np.asarray(table[k], dtype=float) for k in inputs], 1)
    ids = [f"{i}-{x[i].sum():.9f}" for i in range(n)]
    known = {"label": torch.tensor(table["label"])} if "label" in table else {}
    keys = [i.encode() for i in ids]
    return evidence_of(np.nan_to_num(x), ids=ids, keys=keys, facts=facts, **known)


def _check(mine: Table, theirs: Table) -> tuple[Check, Evidence]:
    a, b = _side(mine), _side(theirs)
    versus = VersusEvidence({s.schema.key: s for s in b.sites}, b.columns, b.data, {})
    evidence = replace(a, versus=versus)
    return SND055().check(evidence), evidence


def _moves(mine: Table, theirs: Table) -> dict[str, Any]:
    found = column_comparison(_check(mine, theirs)[1])
    assert not isinstance(found, str), found
    return {move.column: move for move in found.moves}


@pytest.mark.slow
@pytest.mark.truth("the changes that were made to the table, and scipy's two-sample statistic")
def test_each_planted_change_is_named_with_the_line_that_undoes_it() -> None:
    mine, theirs = _table(0), _table(1)
    usual = {name: np.array(theirs[name]) for name in ("c0", "c1", "c2", "c3", "c4", "wage")}
    theirs["c0"] = theirs["c0"] * 0.3048
    theirs["c1"], theirs["c4"] = theirs["c4"], theirs["c1"]
    theirs["c2"] = np.where(np.arange(420) > 250, -999.0, theirs["c2"])
    theirs["c3"] = theirs["c3"] + 0.8
    theirs["wage"] = theirs["wage"] * 100
    theirs["town"] = [t if i % 5 else "Rom" for i, t in enumerate(theirs["town"])]
    theirs["note"] = [t.upper() for t in theirs["note"]]
    check, _ = _check(mine, theirs)
    finding = assert_raised(check, "warning")
    assert finding.sentence.startswith("8 of 9 columns changed in OTHER: c1 and c4 are exchanged;")
    moves = _moves(mine, theirs)
    kinds = {"c0": "factor", "c1": "exchanged", "c4": "exchanged", "c2": "one value"}
    kinds |= {"c3": "shift", "wage": "factor", "town": "new values"}
    assert {name: moves[name].kind for name in kinds} == kinds
    assert moves["c0"].said.endswith("multiplied by 0.3048 (feet to metres)")
    assert moves["c2"].said.startswith("c2 is -999 in 4")
    assert moves["town"].said.endswith("of rows: 'Rom'")
    assert moves["note"].said.startswith(
        "the fraction of capital letters in note is higher (median "
    )
    assert "c5" not in moves
    assert "name" not in moves
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: theirs[name] for name in usual})
    for move in {m.fix for m in moves.values() if m.fix}:
        exec(move, {"frame": frame, "nan": float("nan")})  # the line that a user would paste
    for name in ("c0", "c1", "c4", "wage"):
        assert np.allclose(frame[name], usual[name], rtol=1e-6)
    assert not (frame["c2"] == -999).any()
    assert check.figure is not None
    pairs = [ks_2samp(mine[name], theirs[name]) for name in ("c0", "c1", "wage")]
    largest = max(pair.statistic for pair in pairs)  # pyright: ignore
    assert check.figure.value == pytest.approx(largest, abs=0.1)


@pytest.mark.slow
def test_at_most_one_healthy_pair_in_sixty_raises() -> None:
    """Split tables of numbers, words and texts at random."""
    for n in (50, 350):
        raised = 0
        for seed in range(60):
            whole = _table(1000 + seed, 2 * n)
            order = np.random.default_rng(seed).permutation(2 * n)
            parts = [{k: np.array(v, dtype=object)[at].tolist() for k, v in whole.items()}
                     for at in (order[:n], order[n:])]  # fmt: skip
            raised += _check(*parts)[0].state == "raised"
        assert raised <= 1


@pytest.mark.truth("two columns that were exchanged, and one in other units, of few rows")
def test_an_exchange_of_few_rows_is_no_change_of_units() -> None:
    mine, theirs = _table(11, 110), _table(12, 68)
    theirs["c1"], theirs["c4"] = theirs["c4"], theirs["c1"]
    theirs["wage"] = theirs["wage"] * 0.1
    moves = _moves(mine, theirs)
    assert {name: move.kind for name, move in moves.items()} == {
        "c1": "exchanged", "c4": "exchanged", "wage": "factor"
    }  # fmt: skip
    assert moves["wage"].factor == pytest.approx(0.1, rel=0.2)


@pytest.mark.slow
@pytest.mark.truth("normal theory of the sum of ranks: power .95, at most .05 under the null")
def test_a_shift_of_half_a_spread_is_seen_among_sixty_columns() -> None:
    draw, level = np.random.default_rng(0), 0.001 / 60
    shifted = [
        moved_by_chance(draw.normal(size=285), draw.normal(0.5, 1, 285))[0] for _ in range(150)
    ]
    assert np.mean(np.array(shifted) < level) > 0.88
    equal = [moved_by_chance(*draw.geometric(0.3, (2, 200)))[0] for _ in range(300)]
    assert np.mean(np.array(equal) < 0.05) < 0.08
    mine, theirs = _table(6, 300), _table(7, 300)
    theirs["c4"] = theirs["c4"] + 0.5 * np.std(theirs["c4"])
    assert [(m.column, m.kind) for m in _moves(mine, theirs).values()] == [("c4", "shift")]


def _labelled(seed: int, share: float) -> dict[str, Any]:
    table = _table(seed, 500)
    label = (np.random.default_rng(50 + seed).random(500) < share).astype(int)
    for i in range(4):
        table[f"c{i}"] = table[f"c{i}"] + 2 * label * np.std(table[f"c{i}"])
    return table | {"label": label.tolist()}


@pytest.mark.truth("planted: shares of labels that moved, and a column raised by half its spread")
def test_columns_that_go_with_the_label_do_not_move_where_its_shares_do() -> None:
    mine, theirs = _labelled(20, 0.3), _labelled(21, 0.7)
    assert _moves(mine, theirs) == {}
    theirs["c1"] = theirs["c1"] + 0.6 * np.std(theirs["c1"])
    assert list(_moves(mine, theirs)) == ["c1"]


def test_missing_values_are_told_and_a_column_beside_the_inputs_is_a_note() -> None:
    mine, theirs = _table(2), _table(3)
    theirs["wage"] = [None if i % 4 == 0 else v for i, v in enumerate(theirs["wage"])]
    finding = assert_raised(_check(mine, theirs)[0], "note")
    assert "wage is missing in 25 % of rows, not 0 %" in finding.sentence
    theirs["c5"] = [v if i % 3 else float("nan") for i, v in enumerate(theirs["c5"])]
    finding = assert_raised(_check(mine, theirs)[0], "warning")
    assert "c5 is missing in 33 % of rows" in finding.sentence


CAMERAS: dict[str, Any] = {
    "sharpness": lambda x, _: np.asarray(Image.fromarray(x).filter(GaussianBlur(0.6))),
    "brightness": lambda x, _: 0.75 * x,
    "contrast": lambda x, _: x.mean() + 0.7 * (x - x.mean()),
    "sharpness higher": lambda x, draw: x + draw.normal(0, 30, x.shape),
}


def _pictures(seed: int, camera: Any = lambda x, _: x) -> Evidence:
    draw = np.random.default_rng(seed)
    some = draw.choice(len(DIGITS), 240, replace=False)
    seen = [camera(DIGITS[i], draw).clip(0, 255).astype(np.uint8) for i in some]
    columns = picture_columns([Image.fromarray(x) for x in seen])
    ids = [f"{seed}-{i}" for i in range(len(seen))]
    facts = {"own_columns": lambda _: {}}
    x = np.stack(seen).reshape(len(seen), -1) / 255
    return evidence_of(x, ids=ids, keys=[i.encode() for i in ids], columns=columns, facts=facts)


DIGITS = (load_digits().images * 255 / 16).astype(np.uint8)


@pytest.mark.truth(
    "what was done to the pictures of one side, and other draws of the same pictures"
)
@pytest.mark.parametrize("name", [*CAMERAS, "nothing"])
def test_what_happened_to_pictures_comes_first(name: str) -> None:
    a, b = _pictures(0), _pictures(1, CAMERAS[name]) if name in CAMERAS else _pictures(1)
    versus = VersusEvidence({s.schema.key: s for s in b.sites}, b.columns, b.data, {})
    check = SND055().check(replace(a, versus=versus))
    if name == "nothing":
        assert check.state == "clear"
        return
    finding = assert_raised(check, "warning")
    what, _, how = name.partition(" ")
    assert f"the {what} of the images is {how or 'lower'} (median" in finding.sentence[:60]
    assert {"sharpness": "focus", "brightness": "exposure", "contrast": "gain"}[what] in finding.fix


def test_without_columns_or_with_few_rows_it_does_not_apply() -> None:
    a = evidence_of(np.random.default_rng(0).normal(size=(200, 4)))
    versus = VersusEvidence({s.schema.key: s for s in a.sites}, a.columns, a.data, {})
    check = SND055().check(replace(a, versus=versus))
    assert check.reason == "the two data sets have no columns of numbers, words or texts in common"
    assert "needs 40 rows in each data set" in _check(_table(0, 30), _table(1, 30))[0].reason
    assert SND055().check(a).state == "not_applicable"


def test_forms_of_texts() -> None:
    found = {name: of("Ab 1!\nÄ\ufffd") for name, of in FORMS.items()}
    values = [8, 2 / 3, 2 / 8, 1 / 8, 2 / 8, 1, 1, 0]
    assert list(found.values()) == pytest.approx(values)


@pytest.mark.truth("the texts of OTHER that were replaced by German ones, or put into mark-up")
def test_another_language_comes_before_the_length_and_mark_up_is_counted() -> None:
    texts = [text[: 300 + 5 * (i % 60)] for i, text in enumerate(docstrings()[:120])]
    mine, theirs = ({"c0": np.zeros(90), "note": texts[i : i + 60]} for i in (0, 60))
    for side in (mine, theirs):
        side["c0"] = np.random.default_rng(len(side["note"][0])).normal(size=60)
    plain = theirs["note"]
    theirs["note"] = [f"{GERMAN[i % 4]} {GERMAN[i // 4 % 4]} {i}" for i in range(60)]
    assert _moves(mine, theirs)["note"].said == (
        "the language of note has new values in 100 % of rows: 'de'"
    )
    theirs["note"] = [f"<p>{t}</p>" for t in plain]
    assert _moves(mine, theirs)["note"].said.startswith(
        "the number of HTML tags and entities in note is higher (median 2, not 0"
    )


@pytest.mark.slow
@pytest.mark.truth("the accuracy on the table before it was changed")
def test_the_gain_of_undoing_it_is_measured_by_running_the_model(tmp_path, monkeypatch) -> None:
    from cli_case import run_words

    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(5)
    for name in ("a", "b"):
        x = draw.normal(2, 1, (400, 3)) * (1, 3, 1)
        label = (x[:, 0] - x[:, 1] / 3 + 0.3 * draw.normal(size=400) > 0).astype(int)
        y = x if name == "a" else x[:, [1, 0, 2]] * (1, 1, 0.001)
        lines = [
            ",".join([*(f"{v:.5f}" for v in r), str(k)]) for r, k in zip(y, label, strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("p,q,r,label\n" + "\n".join(lines) + "\n")
        right = float(((x[:, 0] > x[:, 1] / 3) == label).mean())
    (tmp_path / "three.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    first = nn.Linear(3, 3)\n"
        "    first.weight.data, first.bias.data = torch.eye(3), torch.zeros(3)\n"
        "    last = nn.Linear(3, 2)\n"
        "    last.weight.data = torch.tensor([[-1.0, 1 / 3, 0.0], [1.0, -1 / 3, 0.0]])\n"
        "    last.bias.data = torch.zeros(2)\n    return nn.Sequential(first, last).eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("scan", "three:net", "a.csv", "--classes", "0,1", "--only", "SND055", "--json")
    found = run_words(*words, "--versus", "b.csv").json()
    (finding,) = found["findings"]
    assert "p and q are exchanged; r is multiplied by 0.001" in finding["sentence"]
    told = re.search(r"correct on (\d+) % of (\d+) rows instead of (\d+) %", finding["fix"])
    assert told is not None, finding["fix"]
    assert int(told[1]) == pytest.approx(100 * right, abs=4)
    assert int(told[3]) < int(told[1]) - 10
    assert {row["column"] for row in found["versus"]["columns"]} == {"p", "q", "r"}
