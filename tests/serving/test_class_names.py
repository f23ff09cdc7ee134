"""Names of the classes in answers: the model's, the user's, or those of labels in its order."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sonde
from serving_case import asked, served
from sonde.core.errors import InputError
from sonde.detect import Mahalanobis
from sonde.serving.class_names import class_index
from sonde.serving.served import ServedModel
from sonde.store import Store, write_store

COLUMNS = ["a", "b", "c"]


def net():
    """A net that answers with the largest of three columns."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Identity())
    with torch.no_grad():
        model[0].weight.copy_(4 * torch.eye(3))
        model[0].bias.zero_()
    return model.eval()


def fitted_on(tmp_path, model, names):
    """A probe fitted on a table whose label is the name of the largest column."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(3))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "label"])
        writer.writerows([*row, names[row.index(max(row))]] for row in x.tolist())
    stream = sonde.read(model, tmp_path / "rows.csv", sites=["1"], number_columns="a,b,c")
    return sonde.fit(Mahalanobis(), stream, progress=False)


@pytest.mark.parametrize("names", [["ant", "bee", "cow"], ["low", "mid", "high"]])
def test_a_fit_from_a_store_knows_whose_the_labels_are(tmp_path, names):
    live = fitted_on(tmp_path, net(), names)
    stream = sonde.read(net(), tmp_path / "rows.csv", sites=["1"], number_columns="a,b,c")
    write_store(stream, tmp_path / "acts")
    stored = sonde.fit(Mahalanobis(), Store(tmp_path / "acts"), progress=False)
    for fitted in (live, stored):
        assert fitted.header["data"].get("own_labels", False) == (names[0] == "ant")


def first_answers(model, probe=None, **options):
    items = [dict(zip(COLUMNS, row, strict=True)) for row in torch.eye(3).tolist()]
    named = {"number_columns": "a,b,c"} | options
    with served(model, probe, **named) as client:
        found = client.post("/predict", json={"inputs": items}).json()["answers"]
        told = {"feedback": [{"id": one["id"], "truth": i} for i, one in enumerate(found)]}
        right = client.post("/feedback", json=told).json()["correct"]
    return [one["answer"] for one in found], right


def test_labels_in_another_order_do_not_name_the_answers(tmp_path):
    model = net()
    probe = fitted_on(tmp_path, model, ["low", "mid", "high"])  # sorted: high, low, mid
    numbers = ["class 0", "class 1", "class 2"]
    assert first_answers(model, probe) == (numbers, 3)
    assert first_answers(model) == (numbers, 3)
    named = first_answers(model, probe, classes="low,mid,high")
    assert named == (["low", "mid", "high"], 3)


def test_labels_in_the_order_of_the_answers_name_them(tmp_path):
    model = net()
    probe = fitted_on(tmp_path, model, ["ant", "bee", "cow"])
    probe.save(tmp_path / "p.sonde")
    assert first_answers(model, tmp_path / "p.sonde") == (["ant", "bee", "cow"], 3)


def test_names_for_a_model_without_classes_are_refused_at_the_start():
    one = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(InputError, match="expected a classifier"):
        ServedModel(one, None, options={"number_columns": "a,b,c", "classes": "no,yes"})


def test_another_number_of_names_is_refused_at_the_start():
    with pytest.raises(InputError, match="expected 3 class names, one for each output"):
        ServedModel(net(), None, options={"number_columns": "a,b,c", "classes": "x,y"})


def of_json(client):
    found = client.post("/predict", json={"inputs": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]})
    return [one["id"] for one in found.json()["answers"]]


def of_open_inference(client):
    x = {"name": "inputs", "datatype": "FP32", "shape": [2, 3], "data": [1, 0, 0, 0, 1, 0]}
    found = client.post("/v2/models/Sequential/infer", json={"inputs": [x]}).json()
    return [f"{found['parameters']['sonde_id']}-{i}" for i in range(2)]


def of_multipart(client):
    images = [np.full((4, 4, 3), v, np.uint8) for v in ((9, 0, 0), (0, 9, 0))]
    parts = [io.BytesIO() for _ in images]
    for part, image in zip(parts, images, strict=True):
        Image.fromarray(image).save(part, "PNG")
    files = [("image", (f"{i}.png", part.getvalue())) for i, part in enumerate(parts)]
    found = client.post("/predict", files=files)
    assert found.status_code == 200, found.text
    return [one["id"] for one in found.json()["answers"]]


@pytest.mark.truth("the classes of the net")
@pytest.mark.parametrize("door", [of_json, of_open_inference, of_multipart])
def test_a_truth_that_is_no_class_is_refused_and_counts_nothing(door):
    if door is of_multipart:
        pixels = nn.Conv2d(3, 3, 1, bias=False)
        pixels.weight.data = torch.eye(3)[:, :, None, None]
        model = nn.Sequential(pixels, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *net())
        context = served(model.eval(), image_mean=0.0, image_std=1.0, classes="ant,bee,cow")
    else:
        context = served(net(), classes="ant,bee,cow")
    with context as client:
        ids = door(client)
        for truth in ("dog", "7", 3, -1, 0.5, True, None):
            found = client.post("/feedback", json={"id": ids[0], "truth": truth})
            assert found.status_code == 400, truth
            is_value = truth not in (True, None)
            assert ("3 classes (ant, bee, cow)" in found.text) == is_value, found.text
        both = [{"id": ids[0], "truth": "ant"}, {"id": ids[1], "truth": "dog"}]
        found = client.post("/feedback", json={"feedback": both}).json()
        (refused,) = found.pop("refused")
        assert found == {"taken": 1, "correct": 1}
        assert refused["error"].startswith("Input 1: Expected as truth")
        both[1]["truth"] = "bee"
        found = client.post("/feedback", json={"feedback": both}).json()  # the first was told of
        assert (found["taken"], [one["status"] for one in found["refused"]]) == (1, [404])
        assert client.get("/feedback").json()["all"]["n"] == 2
        again = client.post("/feedback", json={"feedback": both})
        assert again.status_code == 404


def test_a_truth_is_a_name_before_it_is_an_index():
    names = ("2", "1", "none")
    assert [class_index(names, truth) for truth in (1, "1", 2.0, 0, "none", "0", 7, 1.5)] == [
        1, 1, 0, 0, 2, None, None, None,
    ]  # fmt: skip


def test_a_regression_has_no_classes():
    model = nn.Sequential(nn.Linear(5, 1))
    with served(model) as client:
        assert isinstance(asked(client, [torch.ones(5)])[0]["answer"], float)
