import re
from functools import cache

import pytest
import torch
from sklearn.metrics import accuracy_score, mean_squared_error
from torch import Tensor, nn

import sonde
from findings import _evidence as arrays
from findings._counting import Counter, counting
from sonde.findings.codes.snd037 import SND037
from sonde.findings.evidence.answers.answers import answers_section
from sonde.findings.evidence.answers.number_answers import rescaled
from sonde.findings.evidence.texts import lens as lens_module
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.settings import ScanSettings
from sonde.report import Report
from sonde.report._answers_words import answers_sentence

OWN = {"labels_are_models": True}


@cache
def pictures() -> tuple[Tensor, Tensor]:
    x, label = arrays.digits()
    order = arrays.shuffled(len(x), 3)[:500]
    return x[order].reshape(-1, 1, 8, 8), label[order]


def scanned(x: Tensor, label: Tensor) -> Report:
    items = [{"pixel_values": a, "label": int(k)} for a, k in zip(x, label, strict=True)]
    module = sonde.load("sonde:digits").module
    return sonde.scan(module, items, settings=ScanSettings(progress=False, only=("SND037",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "step", "level", "said"),
    [
        (0.0, 16.0, 0, "warning", "a linear probe on its last layer"),
        (-1.0, 1.0, 1, "error", "renamed one-to-one, its accuracy would be 9"),
    ],
)
def test_inputs_of_another_scale_and_shifted_labels_are_raised(
    low: float, high: float, step: int, level: str, said: str
) -> None:
    x, label = pictures()
    report = scanned(low + (high - low) * x, (label + step) % 10)
    (found,) = report.findings
    assert (found["code"], found["level"]) == ("SND037", level)
    assert said in found["sentence"]
    assert "\nanswers  correct on" in str(report)


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's accuracy_score over the module's own forward")
def test_a_sound_model_is_clear_and_its_accuracy_is_said() -> None:
    x, label = pictures()
    report = scanned(2 * x - 1, label).json()
    with torch.no_grad():
        answer = sonde.load("sonde:digits").module(2 * x - 1).logits.argmax(1)
    found = report["answers"]
    assert list(report)[:3] == ["schema", "verdict", "answers"]
    assert found["value"] == pytest.approx(accuracy_score(label, answer))
    assert found["low"] < found["value"] < found["high"] <= 1
    assert found["last"]["value"] > 0.9 > found["commonest"]
    assert report["checks"][0]["state"] == "clear"


def test_an_untrained_model_is_not_judged() -> None:
    x, label = arrays.digits()
    torch.manual_seed(0)
    logits = nn.Linear(64, 10)(x).detach()
    check = SND037().check(arrays.evidence_of(x, label=label, logits=logits, facts=OWN))
    assert check.state == "clear"
    assert "untrained" in check.reason
    check = SND037().check(arrays.evidence_of(x, label=label, logits=9 * logits, facts=OWN))
    assert check.state == "raised"


def test_rows_of_one_group_do_not_narrow_the_interval() -> None:
    x, label = arrays.digits()
    x, label = x[:400], label[:400]
    wrong = torch.arange(400) // 40 % 5 == 0
    logits = 9.0 * nn.functional.one_hot(torch.where(wrong, (label + 1) % 10, label), 10)
    widths = []
    for group in (None, torch.arange(400) // 40):
        found = answers_section(
            arrays.evidence_of(x, label=label, logits=logits, group=group, facts=OWN)
        )
        assert found is not None
        assert found["value"] == pytest.approx(0.8)
        widths.append(found["high"] - found["low"])
    assert widths[1] > 3 * widths[0]


def test_a_language_model_that_is_sure_and_wrong_is_raised() -> None:
    stream = counting(Counter((9.0, 9.0)).eval())
    evidence = arrays.evidence_of(torch.randn(40, 3)).having({measure_lens: lens_evidence(stream)})
    assert SND037().check(evidence).state == "clear"
    for item in stream.inputs.items:  # type: ignore[attr-defined]
        item.reverse()
    check = SND037().check(evidence.having({measure_lens: lens_evidence(stream)}))
    assert check.finding is not None
    assert check.finding.figure.value > 5


@pytest.mark.truth("cross entropy of the module's own forward")
def test_the_loss_is_known_without_losses_by_block() -> None:
    stream = counting(Counter((1.0, 1.0), tail=2.0).eval(), n=8)
    losses = []
    for item in stream.inputs.items:  # type: ignore[attr-defined]
        ids = torch.tensor(item)
        logits = stream.model.module(ids[None], torch.ones(1, len(ids)))["logits"].detach()
        losses.append(nn.functional.cross_entropy(logits[0, :-1], ids[1:], reduction="none"))
    lens = lens_evidence(stream)
    assert lens.loss is None
    assert lens.final == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    found = answers_section(arrays.evidence_of(torch.randn(9, 3)).having({measure_lens: lens}))
    assert found is not None
    assert found["per_byte"] is None
    assert found["low"] < found["value"] < found["high"]
    said = answers_sentence({"answers": found})
    assert f"{lens.n_rows} tokens, the first 129 or fewer of each of {lens.n_groups} texts" in said


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's mean_squared_error, and the noise that was added to the targets")
def test_a_regression_is_held_against_its_last_layer_and_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=draw)
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1)).requires_grad_(False)
    truth = net(x)[:, 0] + 0.1 * torch.randn(400, generator=draw)
    states = []
    for scale in (1.0, 30.0):
        items = [{"x": a, "label": float(scale * t)} for a, t in zip(x, truth, strict=True)]
        report = sonde.scan(net, items, settings=ScanSettings(progress=False, only=("SND037",)))
        found = report.json()["answers"]
        error = mean_squared_error(scale * truth, net(x)[:, 0]) ** 0.5
        assert found["measure"] == "rms_error"
        assert found["value"] == pytest.approx(error, rel=1e-4)
        assert found["last"]["value"] == pytest.approx(0.1 * scale, rel=0.15)
        assert found["commonest"] == pytest.approx(scale * float(truth.std(correction=0)), rel=1e-4)
        assert "answers  R^2 " in str(report)
        states.append(report.json()["checks"][0]["state"])
    assert states == ["clear", "raised"]


@pytest.mark.slow
@pytest.mark.truth("the logarithm, the factor and the offset that were planted")
def test_targets_in_logarithms_are_told_with_the_line_that_undoes_it() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(300, 5, generator=draw)
    inner, outer = nn.Linear(5, 5), nn.Linear(5, 1)
    net = nn.Sequential(inner, outer).requires_grad_(False)
    inner.weight.copy_(torch.eye(5))
    outer.weight.copy_(torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.0]]))
    inner.bias.zero_()
    outer.bias.fill_(0.2)
    said = net(x)[:, 0]
    wanted = {"log": 0.7 * said.log() - 1.3, "exp": (0.6 * said + 0.9).exp()}
    found = {}
    for name, truth in wanted.items():
        noise = 0.05 * truth.std() * torch.randn(300, generator=draw)
        items = [{"x": a, "label": float(t)} for a, t in zip(x, truth + noise, strict=True)]
        report = sonde.scan(net, items, settings=ScanSettings(progress=False, only=("SND037",)))
        (finding,) = report.findings
        line = re.search(r"cause: (.*)\.$", finding["fix"])  # numbers that nobody chose
        assert line is not None
        assert finding["trial"] is None
        space = {"y": said.clone()}
        exec(line[1], space)  # what a user would paste
        found[name] = float((space["y"] - truth).std() / truth.std())
    assert max(found.values()) < 0.05


def test_numbers_that_fit_are_a_cause_only_if_somebody_can_have_made_them() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(300, 4, generator=draw).double()
    said = 40 + 9 * x[:, 0] + x[:, 1]
    made = {
        "answers": (said.log(), said / 100, said - 25, (said - said.mean()) / said.std()),
        "head": (0.47 * said - 71, 3.4 * said + 15),
    }
    for scope, targets in made.items():
        for truth in targets:
            noise = 0.05 * truth.std() * torch.randn(300, generator=draw)
            facts = {"target": truth + noise}
            evidence = arrays.evidence_of(x, logits=said[:, None], facts=facts)
            found = rescaled(evidence)
            assert found is not None
            assert found.trial.holds
            assert found.trial.scope == scope, found.words


def test_a_large_model_is_read_on_shorter_texts_and_the_answers_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = counting(Counter((1.0, 1.0)).eval())
    monkeypatch.setattr(lens_module, "OPERATIONS", 1.0)
    monkeypatch.setattr(lens_module, "SHORTEST", 9)
    lens = lens_evidence(stream)
    assert lens.texts is not None
    assert {len(ids) for ids in lens.texts.ids} == {9}
    assert len(lens.texts.ids) == lens_module.LEAST_GROUPS + lens_module.SPARE
    section = answers_section(arrays.evidence_of(torch.randn(9, 3)).having({measure_lens: lens}))
    assert section is not None
    assert section["n_first"] == 9
