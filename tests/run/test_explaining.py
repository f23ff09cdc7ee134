"""Judged explanations: a planted cause is found, noise is not believed, the page holds both."""

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import nn

import sonde
from page_case import Page
from sonde.core import InputError, Model, SiteError
from sonde.data import open_inputs
from sonde.explain import Attribution, Attributor, GradTimesInput, IntegratedGradients, Saliency
from sonde.explain.attribution import ExplainedInput, Parts
from sonde.report.documents import document_of, save_document, to_page, to_terminal
from sonde.run.explaining.explain_answers import explain_answers
from sonde.run.explaining.explanations import (
    best_of,
    explain,
    explain_document,
    find_attributor,
    leading,
    rivals,
)
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


class Marked(nn.Module):
    """Answers 1 if token 7 is in the text, else 0."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 2)
        with torch.no_grad():
            self.embed.weight.copy_(0.01 * torch.randn(20, 2, generator=torch.manual_seed(5)))
            self.embed.weight[7, 0] = 9.0

    def forward(self, input_ids):
        level = self.embed(input_ids)[..., 0].amax(1)
        return torch.stack((torch.full_like(level, 4.0), level), 1)


@dataclass(frozen=True)
class AtToken(Attributor):
    """Points at token 7 with this sign, and somewhere with any sign where it is absent."""

    sign: float = 1.0

    def _parts(self, function, objective):
        tokens = function.call.fed
        assert tokens is not None
        value = 0.01 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
        value = torch.where(tokens == 7, self.sign, value).double()
        spread = value[..., None] * torch.tensor([1.0, 0.0])
        return Parts(spread.to(function.value))


@pytest.mark.slow
@pytest.mark.truth("planted: one token decides, in half of the texts")
def test_an_answer_that_nothing_in_the_input_makes_refutes_no_attribution():
    tokens = torch.randint(8, 20, (12, 9), generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(6), torch.tensor([1, 4, 8, 0, 3, 5])] = 7
    model = Model(Marked())
    inputs = open_inputs(model, [{"input_ids": row} for row in tokens], batch_size=12)
    methods = [AtToken(), AtToken(-1.0), Noise()]
    batch, (right, against, noise) = explain(model, inputs, methods, progress=False)
    assert best_of((noise, against, right)) is right
    (held,) = [one for one in right.verdicts[1:] if one.is_believable]
    assert (held.label, held.n, held.better, held.wrong) == ("1", 6, 6, 0)
    # the token goes first: area 1 / 20 of deletion and of insertion at most from the whole worth
    assert held.effect > 0.6
    assert not against.is_believable
    assert not noise.is_believable
    named = {"0": "plain", "1": "marked"}
    found = explain_document([noise, against, right], batch, model="m", data="d", classes=named)
    assert found["methods"][0]["method"] == found["best"] == "at_token"
    said = to_terminal(found)
    assert "effect" in said
    assert "marked" in json.dumps(found["methods"][0]["classes"])


def _shown(gains, worth=1.0):
    """An attribution whose inputs have these gains."""
    n = len(gains)
    inputs = {
        "gain": gains,
        "worth": [worth] * n,
        "wrong": [0.0] * n,
        "label": ["0"] * n,
        "chance": [0.0, 0.001, -0.001],
    }
    area = {"value": 0.0, "se": 0.0, "random": 0.0, "random_spread": 1e-3}
    found = Attribution(value=torch.zeros(n, 2), objective=torch.zeros(n), n=n)
    violation = {"value": 0.0, "low": 0.0, "high": 0.1, "base_rate": 0.0, "signed": True}
    return Judged("m", found, area, area, violation, {"value": 0.0, "passed": True}, inputs)


@pytest.mark.truth("gains that are typed in; scipy's one-sided t-test")
def test_verdicts_are_ranked_by_their_effect_and_a_small_one_is_not_believed():
    gains = [0.31, 0.02, 0.44, 0.25, 0.13, 0.38, -0.05]
    large, small = _shown(gains, 0.8), _shown([g / 9 for g in gains], 0.8)
    verdict = large.verdicts[0]
    assert verdict.effect == pytest.approx(sum(gains) / 7 / 0.8)
    test: Any = ttest_1samp(gains, 0.0, alternative="greater")
    want = test.pvalue
    assert verdict.p == pytest.approx(want)
    assert (verdict.better, verdict.is_believable) == (6, True)
    assert small.verdicts[0].p == pytest.approx(want)
    assert not small.is_believable
    medium = _shown([g / 2 for g in gains], 0.8)
    assert best_of((medium, small, large)) is large
    assert _shown([0.3], 0.8).verdicts[0].p < 0.025  # one input: random orders are the spread
    assert not _shown([0.0005], 0.001).is_believable


@pytest.mark.truth("gains that are typed in; scipy's paired t-test")
def test_effects_are_told_apart_by_their_lead_over_inputs_in_pairs():
    gains = [0.31, 0.02, 0.44, 0.25, 0.13, 0.38, -0.05]
    noise = [0.05, -0.04, 0.06, -0.05, 0.02, -0.06, 0.01]
    best = _shown(gains, 0.8)
    near = _shown([g - 0.01 - e for g, e in zip(gains, noise, strict=True)], 0.8)
    weak = _shown([0.6 * g + 0.01 for g in gains], 0.8)
    stronger = _shown([g + 0.2 + e for g, e in zip(gains, noise, strict=True)], 0.8)
    stronger.inputs["wrong"] = [1.0] * 7
    each: Any = ttest_1samp(
        [(a - b) / 0.8 for a, b in zip(gains, weak.inputs["gain"], strict=True)], 0.0
    )
    want = each.confidence_interval(0.95)
    assert best.lead(weak) == pytest.approx((want.low, want.high))
    judged = [weak, near, best, stronger]
    assert best_of(judged) is best
    equal, larger = rivals(judged, best)
    assert near in equal
    assert (weak in equal, larger) == (want.low <= 0, [stronger])


def test_inputs_that_all_speak_for_an_attribution_but_are_too_few_are_called_too_few():
    gains = [0.4, 0.31, 0.44, 0.25]
    few = _shown(gains)
    assert (few.is_believable, few.best.is_open) == (False, True)  # four signs may be a coin's
    assert leading([few]) is few
    assert best_of([few]) is None
    assert not _shown([*gains[:3], -0.1]).best.is_open
    assert not _shown(gains * 2).best.is_open


def test_signs_are_judged_where_the_probability_is_one_whatever_is_taken_away():
    layer = nn.Linear(4, 2, bias=False)
    layer.weight = nn.Parameter(25.0 * torch.tensor([[-1.0], [1.0]]).expand(2, 4))
    model = Model(layer)
    rows = 1 + torch.rand(12, 4, generator=torch.Generator().manual_seed(3))
    inputs = open_inputs(model, [{"input": row} for row in rows], batch_size=12)
    _, (found,) = explain(model, inputs, [GradTimesInput()], progress=False)
    assert found.verdicts[0].moved == 12
    assert found.verdicts[0].wrong == 0


@pytest.mark.truth("planted: nine pixels decide")
def test_what_points_at_the_cause_is_believed_and_noise_is_not(judged):
    _, (noise, integrated) = judged
    assert not noise.is_believable
    assert integrated.is_believable
    assert best_of((noise, integrated)) is integrated
    assert best_of((noise,)) is None
    mass = torch.as_tensor(integrated.found.by_place).abs()
    assert float(mass[:, :3, :3].sum() / mass.sum()) == pytest.approx(1.0)


@pytest.mark.slow
def test_page_and_text_say_which_one(judged, tmp_path):
    batch, both = judged
    found = explain_document(both, batch, model="<b>m</b>", data="d", most=3)
    assert "Trust integrated_gradients(steps=8) here" in document_of(found).verdict
    low, high = found["methods"][0]["effect_range"]
    assert low < found["methods"][0]["effect"] < high
    text = to_terminal(found)
    assert max(map(len, text.splitlines())) <= 80
    pixels = [{"pixels": batch.kwargs["x"][i]} for i in range(3)]
    html = to_page(found, shown_inputs=pixels)
    assert {a.get("id") for a in Page(html).all("section")} == {"methods", "examples"}
    assert "<b>m" not in html
    carried = re.search(r'<script type="application/json" id="sonde">([^<]*)</script>', html)
    assert carried is not None
    assert json.loads(carried[1]) == found
    assert save_document(found, tmp_path / "e.json").exists()
    none = explain_document(both[:1], batch, model="m", data="d")
    assert "No explanation is reliable" in document_of(none).verdict
    assert len(Page(to_page(none)).all("svg")) > 12


def test_features_of_a_dictionary_are_on_the_page(judged):
    batch, both = judged
    found = explain_document(both, batch, model="m", data="d", most=1)
    row = {"feature": 1207, "value": 0.5, "ablated": 0.375, "active": 0.25}
    page = Page(to_page(found | {"features": [row]}))
    assert "features" in {a.get("id") for a in page.all("section")}
    said = " ".join(text for parts in page.texts.values() for text in parts)
    assert all(word in said for word in ("1207", "0.375", "Taken out"))
    assert "0.375" in to_terminal(found | {"features": [row]})


@pytest.mark.slow
def test_methods_that_are_ready_are_shown_and_the_others_named_once_time_is_spent():
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Model(Corner())
    inputs = open_inputs(model, [{"x": image} for image in images], batch_size=6)
    methods = (GradTimesInput(), Saliency())
    batch, judged = explain(model, inputs, methods, progress=False, n_random=1, seconds=1e-9)
    assert [one.word for one in judged] == ["grad_times_input"]
    assert len(explain(model, inputs, methods, progress=False, n_random=1)[1]) == 2
    found = explain_document(judged, batch, model="m", data="d", not_run=("saliency",))
    text = to_terminal(found)
    assert re.search(r"not run +saliency: no time was left \(--seconds 0 runs all", text)
    assert "grad_times_input" in text


@pytest.mark.slow
def test_a_method_that_does_not_fit_the_model_is_named_and_the_others_run():
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    rows, said = [{"x": image} for image in images], list[str]()
    words = "raw_attention,saliency,grad_cam"
    found = explain_answers(Corner(), rows, methods=words, progress=said.append)
    assert [one["method"] for one in found.document["methods"]] == ["saliency"]
    assert list(found.document["refused"]) == ["raw_attention", "grad_cam"]
    assert found.document["not_run"] == []
    assert said[0].startswith("note: raw_attention is left out: attention: Corner contains no")
    text = re.sub(r"\s+", " ", to_terminal(found.document))
    assert "left out raw_attention: attention: Corner contains no attention layer" in text
    with pytest.raises(SiteError, match="contains no attention layer"):
        explain_answers(Corner(), rows, methods="raw_attention,grad_cam", progress=False)


def test_methods_have_words():
    assert find_attributor("grad_times_input") is GradTimesInput
    with pytest.raises(InputError, match="saliency"):
        find_attributor("salience")
    assert find_attributor("saliency") is Saliency


def test_an_attribution_that_is_kept_comes_back_and_a_damaged_one_is_judged_again(tmp_path):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    said = {"value": 0.5, "random": float("nan"), "signed": True}
    found = Attribution(
        value=values,
        objective=values[:, 0],
        n=3,
        conventions={"signed": True, "site": "input"},
        inputs=(ExplainedInput("left", (1,), 1), ExplainedInput("right", (1, 3), 1)),
    )
    one, calls = Judged("saliency", found, said, said, said, said, said), []
    kept = KeptExplanations(tmp_path / "why.run", "asked")

    def judge() -> Judged:
        calls.append(1)
        return one

    kept.judged(Saliency(), judge)
    again = kept.judged(Saliency(), judge)
    assert len(calls) == 1
    torch.testing.assert_close(torch.as_tensor(again.found.value), values, rtol=0, atol=0)
    assert again.found.conventions == found.conventions
    torch.testing.assert_close(again.found.parts["right"], values[:, 1:].reshape(3, 1, 3))
    assert again.found.gap is None
    assert again.deletion["value"] == 0.5
    (path,) = (tmp_path / "why.run").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    kept.judged(Saliency(), judge)
    assert len(calls) == 2
    remove_kept(tmp_path / "why.run")
    assert not (tmp_path / "why.run").exists()


class Two(nn.Module):
    """Reads two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 2)

    def forward(self, left, right):
        return self.a(left) - self.b(right).tanh() * left[:, :1]


@pytest.mark.parametrize(
    ("site", "held", "place"), [("input", "", "left 0"), (":in.right", "left", "0")]
)
def test_the_page_names_the_inputs_that_are_explained(site, held, place):
    draw = torch.Generator().manual_seed(0)
    model = sonde.load(Two())
    items = [{n: torch.randn(k, generator=draw) for n, k in (("left", 2), ("right", 3))}] * 3
    inputs = open_inputs(model, items)
    batch, judged = explain(
        model, inputs, [GradTimesInput()], site=site, n_random=1, progress=False
    )
    found = explain_document(judged, batch, model="m", data="d")
    assert (found["inputs"], found["held"]) == ((held and "right") or "left, right", held)
    text = to_terminal(found)
    assert ("input (left, right)" if site == "input" else "at :in.right") in text
    assert ("held as given  left" in text) is bool(held)
    assert place in to_page(found)


@dataclass(frozen=True)
class Late(Attributor):
    """Takes longer than the method before it gave reason to expect."""

    def _parts(self, function, objective):
        time.sleep(2.0)
        return Parts(torch.ones_like(function.value))


@pytest.mark.slow
def test_the_first_look_comes_before_its_tests_and_time_ends_between_tests():
    images = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model, seen = Model(Corner()), []
    inputs = open_inputs(model, [{"x": image} for image in images], batch_size=3)
    judged = explain(
        model, inputs, [Noise(), Late()], progress=False, seconds=2.0,
        ready=lambda batch, word, found: seen.append((word, found.n, len(batch))),
    )[1]  # fmt: skip
    assert [one.word for one in judged] == ["noise"]
    assert seen[0] == ("noise", 3, 3)


@pytest.mark.slow
def test_the_first_look_names_the_token_that_decides() -> None:
    texts = [{"input_ids": [3, 7, 4, 5]}, {"input_ids": [1, 2, 3, 4]}]
    said: list[str] = []
    sonde.explain_answers(Model(Marked()), texts, methods="saliency", progress=said.append)
    assert "not tested yet" in said[0]
    assert said[1].split(": ")[1].split(", ")[0] == "'7'"
