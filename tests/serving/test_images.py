"""Pictures for a model that does not say how it reads them: the probe, or the options, do."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from torch import nn

import sonde
from serving_case import served
from sonde.detect import Mahalanobis

PIXELS = {"image_mean": 0.0, "image_std": 1.0}


def pictures(n, seed):
    drawn = np.random.default_rng(seed).integers(0, 255, size=(n, 12, 12, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in drawn]


def answers(client, images):
    parts = [io.BytesIO() for _ in images]
    for part, image in zip(parts, images, strict=True):
        image.save(part, "PNG")
    coded = [{"b64": base64.b64encode(part.getvalue()).decode()} for part in parts]
    found = client.post("/predict", json={"inputs": coded})
    assert found.status_code == 200, found.text
    return found.json()["answers"]


@pytest.mark.truth("the scores of sonde.score on the same pictures")
def test_a_model_without_a_preprocessor_reads_pictures_as_its_probe_did():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    items = [{"image": one} for one in pictures(60, 0)]
    stream = sonde.read(model, items, sites=["0"], **PIXELS)
    probe = sonde.fit(Mahalanobis(), stream, calibrate=0.3, progress=False)
    new = pictures(4, 1)
    wanted = sonde.score(probe, model, [{"image": one} for one in new]).to_pydict()
    with served(model, probe) as client:
        found = answers(client, new)
    each = [one["score"]["mahalanobis"]["0:out"] for one in found]
    assert each == pytest.approx(wanted["score"], rel=1e-5)
    with served(model, **PIXELS) as client:
        assert [one["answer"] for one in answers(client, new)] == [one["answer"] for one in found]
