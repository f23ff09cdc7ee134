"""Healthy answers that a user gives: they say what is possible where every layer is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import sonde
from scan._zoo import quiet
from sonde.core.errors import InputError
from sonde.findings.document import document
from sonde.findings.evidence.answers.best_probe import REFERENCE, best_probe
from sonde.findings.evidence.answers.reference import reference_answers
from sonde.findings.evidence.record import DataEvidence
from sonde.report import Report
from sonde.report.scan import run_scan

N = 300


@pytest.fixture(scope="module")
def damaged() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a net whose first layer is lost, of a task that no line through the inputs solves."""
    torch.manual_seed(0)
    x = torch.randn(N, 4)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return net.eval(), x, (x[:, 0] * x[:, 1] > 0).long()


def _rows(x: torch.Tensor, y: torch.Tensor) -> list[dict[str, object]]:
    return [{"x": x[i], "label": y[i].item(), "id": f"r{i}"} for i in range(len(y))]


def _answers(path: Path, said: torch.Tensor) -> Path:
    lines = [{"id": f"r{i}", "answer": a} for i, a in enumerate(said.tolist())]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text("id,answer\n" + "".join(f"{r['id']},{r['answer']}\n" for r in lines))
    return path


@pytest.mark.slow
@pytest.mark.truth("labels of which a known number was changed; numpy's variance")
@pytest.mark.parametrize(("kind", "suffix"), [("classes", ".csv"), ("numbers", ".jsonl")])
def test_the_best_known_answers_are_the_reference(damaged, tmp_path, suffix, kind) -> None:
    net, x, y = damaged
    if kind == "numbers":
        net, y = nn.Sequential(net, nn.Linear(2, 1)).eval(), x[:, 0] * x[:, 1]
        said = y + 0.1 * torch.randn(N, generator=torch.Generator().manual_seed(1))
        expected = 1 - float((said - y).square().mean() / y.var(correction=0))
    else:
        said, expected = torch.where(torch.arange(N) < 30, 1 - y, y), 0.9
    path = _answers(tmp_path / f"healthy{suffix}", said)
    settings = quiet(only=("SND015",), reference=path)
    scanned, _ = run_scan(net, _rows(x, y), settings=settings)
    best = best_probe(scanned.evidence)
    assert best is not None
    assert best.where == REFERENCE
    assert best.mean == pytest.approx(expected, abs=1e-5)
    plain = best_probe(replace(scanned.evidence, reference=None))
    assert plain is not None
    assert plain.mean < best.mean
    report = Report(document(scanned, "net", 0.0))
    assert report.json()["answers"]["reference"]["n_rows"] == N
    assert f"the reference healthy{suffix}: " in " ".join(str(report).split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,answer\nother1,0\n", "expected at least 12 answers"),
        ("id,truth\nr1,0\n", "expected the columns id and answer"),
        ("", "got no rows"),
        ("id,answer\nr1,\n", "none in the column answer"),
    ],
)
def test_a_file_without_healthy_answers_is_refused(damaged, tmp_path, text, said) -> None:
    net, x, y = damaged
    path = tmp_path / "healthy.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        sonde.scan(net, _rows(x, y), settings=quiet(only=("SND015",), reference=path))
    with pytest.raises(InputError, match="ends in"):
        sonde.scan(net, _rows(x, y), settings=quiet(reference=tmp_path / "healthy.txt"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (None, "{}"),
        (None, "{}.0"),
        (("no", "yes"), "{}"),
        (("1", "0"), "{}"),
    ],
)
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_an_answer_is_a_name_or_else_a_number(tmp_path, names, words, start) -> None:
    ids, label = [f"r{i}" for i in range(20)], torch.arange(20) % 2
    data = DataEvidence("data", "", ids, ids, ids, False, label, names, labels_are_models=True)
    said = [k if i < 15 else 1 - k for i, k in enumerate(label.tolist())]
    shown = said if names is None or names[0] == "no" else [int(names[k]) for k in said]
    lines = [f"{i},{words.format(k)}\n" for i, k in zip(ids, shown, strict=True)]
    path = tmp_path / "healthy.csv"
    path.write_text(start + "id,answer\n" + "".join(lines), encoding="utf-8")
    reference = reference_answers(path, data)
    assert reference is not None
    assert reference.mean == 0.75


def test_rows_of_a_reference_without_an_id_are_left_out_and_broken_ones_are_named(tmp_path):
    ids, label = [f"r{i}" for i in range(20)], torch.arange(20) % 2
    data = DataEvidence("data", "", ids, ids, ids, False, label, labels_are_models=True)
    lines = [json.dumps({"id": i, "answer": k}) for i, k in zip(ids, label.tolist(), strict=True)]
    path = tmp_path / "healthy.jsonl"
    path.write_text("\n".join([*lines, '{"answer": 1}']))
    reference = reference_answers(path, data)
    assert reference is not None
    assert len(reference.scores) == 20
    path.write_text("\n".join([*lines, "[1]"]))
    with pytest.raises(InputError, match="line 21"):
        reference_answers(path, data)
