"""Which inputs are explained: those asked for, spread over classes; and what their answers are."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.explain import IntegratedGradients
from sonde.report._explained_words import answer_sentence
from sonde.run.explaining.answers import answers_of
from sonde.run.explaining.choosing import Choice
from sonde.run.explaining.explanations import explain


class Sums(nn.Module):
    """Answers the class of the largest number; a given third number counts for class 0 too."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([[1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0]]))

    def forward(self, x):
        return self.mix(x)


@pytest.fixture(scope="module")
def sorted_data():
    """Ninety rows sorted by class, of which every tenth is pulled to class 0."""
    draw = torch.Generator().manual_seed(2)
    label = torch.arange(90) // 30
    x = torch.cat([5 * torch.eye(3)[label] + 0.1 * torch.rand(90, 3, generator=draw),
                   torch.zeros(90, 1)], 1)  # fmt: skip
    x[5::10, 3] = 4.0
    model = Model(Sums())
    rows = [{"x": x[i], "label": "abc"[int(label[i])], "id": f"r{i}"} for i in range(90)]
    inputs = open_inputs(
        model, rows, label_column="label", id_column="id", classes="a,b,c", logits=True
    )
    answer = model.module(x).argmax(1)
    return model, inputs, label.numpy(), answer.detach().numpy()


def rows_of(inputs):
    return inputs.source_rows.tolist()


@pytest.mark.truth("argmax of the net beside the labels")
def test_the_default_is_a_spread_over_classes_right_and_wrong(sorted_data) -> None:
    model, inputs, label, answer = sorted_data
    kept = np.array(rows_of(Choice().of(model, inputs, 5)))
    cells = {(label[i], label[i] == answer[i]) for i in kept}
    assert cells == {(0, True), (1, True), (1, False), (2, True), (2, False)}


def test_texts_are_of_as_many_documents_as_there_are_and_go_on_with_a_token() -> None:
    model = sonde.load("sonde:stdlib")
    names = ["first"] * 9 + ["second"] * 2 + ["third"] * 2
    rows = [{"text": f"def {n}(x{i}):\n    return", "source": n} for i, n in enumerate(names)]
    inputs = open_inputs(model, rows, group_column="source", logits=True)
    chosen = Choice().of(model, inputs, 6)
    assert Counter(names[i] for i in rows_of(chosen)) == {"first": 2, "second": 2, "third": 2}
    batch = next(iter(chosen.batches(0, 6)))
    (one, *_) = answers_of(model, batch, None, "input", {})
    text = rows[rows_of(chosen)[0]]["text"].encode()
    with torch.no_grad():
        sure = model.module(torch.tensor([list(text)])).logits[0, -1].softmax(0)
    assert one["answer"] == repr(chr(int(sure.argmax())))
    assert one["confidence"] == pytest.approx(float(sure.max()), abs=1e-4)
    assert one["verb"] == "goes on with"


@pytest.mark.truth("argmax of the net beside the labels")
def test_wrong_rows_a_pair_and_a_class_are_those_of_the_net(sorted_data) -> None:
    model, inputs, label, answer = sorted_data
    wrong = np.flatnonzero(label != answer).tolist()
    assert len(wrong) == 6
    assert rows_of(Choice(wrong=True).of(model, inputs, 50)) == wrong
    pair = np.flatnonzero((label == 2) & (answer == 0)).tolist()
    assert rows_of(Choice(pair=("c", "a")).of(model, inputs, 50)) == pair
    assert rows_of(Choice(label="b").of(model, inputs, 50)) == list(range(30, 60))
    with pytest.raises(
        InputError, match="expected at least one input to explain, got none among 30 rows"
    ):
        Choice(pair=("c", "b")).of(model, inputs, 50)
    with pytest.raises(InputError, match="expected a class among a, b, c"):
        Choice(pair=("c", "d")).of(model, inputs, 50)


def test_rows_of_a_table_are_taken_by_number_or_id(sorted_data, tmp_path) -> None:
    model, inputs, _, _ = sorted_data
    for name, values in (("row", [70, 3]), ("id", ["r3", "r70"])):
        with (tmp_path / "rows.csv").open("w") as file:
            csv.writer(file).writerows([[name], *([value] for value in values)])
        assert rows_of(Choice(rows=tmp_path / "rows.csv").of(model, inputs, 9)) == [3, 70]
    (tmp_path / "rows.csv").write_text("name\n3\n")
    with pytest.raises(InputError, match="expected a column row or id"):
        Choice(rows=tmp_path / "rows.csv").of(model, inputs, 9)


def test_inputs_are_named_by_id_place_or_row(sorted_data) -> None:
    model, inputs, _, _ = sorted_data
    for words in (("r3", "r70"), ("70", inputs.place(3)), ("r70,3",)):
        assert rows_of(Choice(ids=words).of(model, inputs, 9)) == [3, 70]
    with pytest.raises(InputError, match="r700"):
        Choice(ids=("r3", "r700")).of(model, inputs, 9)


@pytest.mark.truth("the net without its fourth number answers the label")
def test_without_the_strongest_place_a_wrong_row_is_right(sorted_data) -> None:
    model, inputs, _, _ = sorted_data
    wrong = Choice(wrong=True).of(model, inputs, 6)
    batch, (judged,) = explain(model, wrong, [IntegratedGradients(8)], progress=False)
    classes = {"0": "a", "1": "b", "2": "c"}
    said = answers_of(model, batch, judged, "input", classes)
    assert all(one["strongest"] == [3] and one["answer"] == "a" for one in said)
    assert [one["without"] for one in said] == [one["truth"] for one in said]
    p = model.module(*batch.args, **batch.kwargs).softmax(1)[:, 0].tolist()
    assert [one["confidence"] for one in said] == pytest.approx(p)
    sentence = answer_sentence(said[0], [4], ["w", "x", "y", "dose"])
    assert sentence.endswith("depends most on 'dose'; without it: " + said[0]["truth"])
    assert answers_of(model, batch, None, "input", classes)[0]["strongest"] == []


@pytest.mark.truth("closed form: a net of twice the first number, with targets that are known")
def test_of_a_regression_the_rows_farthest_off_are_explained_with_their_own_targets() -> None:
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, 0.5]]))
    off = np.array([0.0, -3.0, 0.5, 9.0, -0.25, 4.0, 1.0, -7.0])
    rows = [{"a": 1.0 + i, "b": 0.2 * i, "price": 2.1 * i + 2 + off[i]} for i in range(len(off))]
    model = Model(net)
    wrong = Choice(wrong=True).of(
        model, open_inputs(model, rows, label_column="price", logits=True), 3
    )
    assert rows_of(wrong) == [3, 5, 7]
    batch, (judged,) = explain(model, wrong, [IntegratedGradients(8)], progress=False)
    target = wrong.listing.target
    assert target is not None
    said = answers_of(model, batch, judged, "input", {}, target[batch.order.numpy()].tolist())
    gaps = [one["truth"] - one["answer"] for one in said]
    assert gaps == pytest.approx([9.0, 4.0, -7.0], abs=1e-5)
    assert [float(one["without"]) for one in said] == pytest.approx([0.3, 0.5, 0.7], rel=1e-3)


def test_of_two_corners_that_speak_the_stronger_is_named_and_not_the_middle_between() -> None:
    said = {"truth": "2", "answer": "8", "confidence": 0.9, "without": "2"}
    made = answer_sentence(said | {"strongest": [0, 1, 8, 63, 62, 55]}, (8, 8), ())
    assert "depends most on the upper left" in made
    made = answer_sentence(said | {"strongest": [63, 62, 0, 1, 27, 28, 35, 36]}, (8, 8), ())
    assert "depends most on the lower right" in made
