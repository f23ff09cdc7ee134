"""Outputs without names are the classes in sorted order where the model answers so."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core import Model
from sonde.data import open_inputs
from sonde.run.reading.class_order import in_sorted_order, stream_in_sorted_order
from sonde.store import write_store


class Largest(nn.Module):
    """Answers which of three numbers is the largest; output i stands for number ``order[i]``."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.pick = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.pick.weight.copy_(torch.eye(3)[list(order)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pick(x)


def rows_of(n: int, noise: float, names: str = "elm fir oak", seed: int = 0) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, len(names.split()), (n,), generator=draw)
    x = torch.eye(3)[kind.clamp(max=2)] + noise * torch.randn(n, 3, generator=draw)
    return [{"x": x[i], "label": names.split()[int(kind[i])]} for i in range(n)]


def opened(module: nn.Module, rows: list[dict]):
    model = Model(module)
    return in_sorted_order(model, open_inputs(model, rows, label_column="label", logits=True))


@pytest.mark.truth("nets whose outputs stand in a known order")
def test_the_sorted_order_is_taken_where_the_model_answers_so() -> None:
    taken = opened(Largest(0, 1, 2), rows_of(120, 0.4))
    assert taken.own_labels
    assert taken.typed["classes"] == ["elm", "fir", "oak"]
    assert "elm, fir, oak in this order" in taken.notes[-1]
    # another order, two names exchanged, answers by chance
    for order, noise in (((1, 2, 0), 0.4), ((0, 2, 1), 0.1), ((0, 1, 2), 40.0)):
        left = opened(Largest(*order), rows_of(120, noise))
        assert not left.own_labels
        assert "classes" not in left.typed


@pytest.mark.slow
@pytest.mark.truth("labels and answers of a net counted by hand")
def test_a_class_that_other_alone_has_does_not_rename_the_answers() -> None:
    mine, theirs = rows_of(160, 0.3), rows_of(160, 0.3, "elm fir oak birch", seed=1)
    for order in ((0, 1, 2), (1, 2, 0)):
        module = Largest(*order)
        report = sonde.scan(
            module, mine, theirs, label_column="label", settings=None, progress=False
        ).json()
        told = json.loads(json.dumps(report["versus"]["labels"]))
        assert told["new"]["other"] == ["birch"]
        shares = {c["label"]: c["answers_other"] for c in told["classes"]}
        if order != (0, 1, 2):
            assert not any(shares.values())  # nobody said what its outputs stand for
            continue
        x = torch.stack([row["x"] for row in theirs])
        counts = np.bincount(module(x).argmax(1).numpy(), minlength=3) / len(theirs)
        assert [shares[name] for name in ("elm", "fir", "oak")] == pytest.approx(counts.tolist())
        right = np.mean([
            row["label"] == ["elm", "fir", "oak"][int(module(row["x"][None]).argmax())]
            for row in theirs
        ])  # fmt: skip
        assert told["accuracy"]["other"]["value"] == pytest.approx(right)


def test_a_store_keeps_that_its_labels_are_the_models(tmp_path) -> None:
    stream = sonde.read(Largest(0, 1, 2), rows_of(120, 0.4), label_column="label")
    write_store(stream_in_sorted_order(stream), tmp_path / "acts")
    answers = sonde.scan(tmp_path / "acts", progress=False).json()["answers"]
    x = torch.stack([row["x"] for row in rows_of(120, 0.4)])
    said = [["elm", "fir", "oak"][i] for i in x.argmax(1).tolist()]
    right = np.mean([a == row["label"] for a, row in zip(said, rows_of(120, 0.4), strict=True)])
    assert answers["value"] == pytest.approx(right, abs=0.08)  # of the rows that a probe leaves
