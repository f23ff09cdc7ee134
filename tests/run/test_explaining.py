"""Judged explanations: a planted cause is found, noise is not believed, the page holds both."""

import json
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from page_case import Page
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.explain import Attribution, Attributor, GradTimesInput, IntegratedGradients, Saliency
from sonde.explain.attribution import Parts
from sonde.report.explain import explain_to_html, save_explain
from sonde.report.explain_terminal import explain_to_text, explain_verdict
from sonde.run.explaining.explain import best_of, explain, explain_document, find_attributor
from sonde.run.explaining.judged import Judged
from sonde.run.explaining.kept import KeptExplanations, remove_kept


@dataclass(frozen=True)
class Noise(Attributor):
    """Numbers that have nothing to do with the model."""

    def _parts(self, function, objective):
        x = function.value
        return Parts(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x))


class Corner(nn.Module):
    """Answers by the mean of the upper left 3 x 3 pixels alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x):
        level = 4 * self.conv(x)[:, 0, :3, :3].mean((1, 2))
        return torch.stack((level, -level), dim=1)


@pytest.fixture(scope="module")
def judged():
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, :, :3, :3] += 1.0
    model = Model(Corner())
    inputs = open_inputs(model, [{"x": image} for image in images], batch_size=12)
    return explain(model, inputs, [Noise(), IntegratedGradients(8)], progress=False)


@pytest.mark.truth("planted: nine pixels decide")
def test_what_points_at_the_cause_is_believed_and_noise_is_not(judged):
    _, (noise, integrated) = judged
    assert not noise.is_believable
    assert integrated.is_believable
    assert best_of((noise, integrated)) is integrated
    assert best_of((noise,)) is None
    mass = torch.as_tensor(integrated.found.by_place).abs()
    assert float(mass[:, :3, :3].sum() / mass.sum()) == pytest.approx(1.0)


def test_page_and_text_say_which_one(judged, tmp_path):
    batch, both = judged
    found = explain_document(both, batch, model="<b>m</b>", data="d", most=3)
    assert "Believe integrated_gradients(steps=8) here" in explain_verdict(found)
    text = explain_to_text(found)
    assert max(map(len, text.splitlines())) <= 80
    pixels = [{"pixels": batch.kwargs["x"][i]} for i in range(3)]
    html = explain_to_html(found, pixels)
    assert {a.get("id") for a in Page(html).all("section")} == {"methods", "examples"}
    assert "<b>m" not in html
    carried = re.search(r'<script type="application/json" id="sonde">([^<]*)</script>', html)
    assert carried is not None
    assert json.loads(carried[1]) == found
    assert save_explain(found, tmp_path / "e.json").exists()
    none = explain_document(both[:1], batch, model="m", data="d")
    assert "No explanation can be believed" in explain_verdict(none)
    assert len(Page(explain_to_html(none)).all("svg")) > 12


def test_features_of_a_dictionary_are_on_the_page(judged):
    batch, both = judged
    found = explain_document(both, batch, model="m", data="d", most=1)
    row = {"feature": 1207, "value": 0.5, "ablated": 0.375, "active": 0.25}
    page = Page(explain_to_html(found | {"features": [row]}))
    assert "features" in {a.get("id") for a in page.all("section")}
    said = " ".join(text for parts in page.texts.values() for text in parts)
    assert all(word in said for word in ("1207", "0.375", "Taken out"))
    assert "0.375" in explain_to_text(found | {"features": [row]})


def test_methods_have_words():
    assert find_attributor("grad_times_input") is GradTimesInput
    with pytest.raises(InputError, match="saliency"):
        find_attributor("salience")
    assert find_attributor("saliency") is Saliency


def test_an_attribution_that_is_kept_comes_back_and_a_damaged_one_is_judged_again(tmp_path):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    said = {"value": 0.5, "random": float("nan"), "signed": True}
    found = Attribution(
        value=values, objective=values[:, 0], n=3, conventions={"signed": True, "site": "input"}
    )
    one, calls = Judged("saliency", found, said, said, said, said), []
    kept = KeptExplanations(tmp_path / "why.run", "asked")

    def judge() -> Judged:
        calls.append(1)
        return one

    kept.judged(Saliency(), judge)
    again = kept.judged(Saliency(), judge)
    assert len(calls) == 1
    torch.testing.assert_close(torch.as_tensor(again.found.value), values, rtol=0, atol=0)
    assert again.found.conventions == found.conventions
    assert again.found.gap is None
    assert again.deletion["value"] == 0.5
    (path,) = (tmp_path / "why.run").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    kept.judged(Saliency(), judge)
    assert len(calls) == 2
    remove_kept(tmp_path / "why.run")
    assert not (tmp_path / "why.run").exists()
