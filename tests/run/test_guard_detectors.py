"""Every detector under a guard: the scores of ``sonde.score``, or a refusal with the command."""

import inspect
from typing import Any

import pytest
import torch

import sonde
from models import cnn
from sonde import Guard, detect
from sonde.core import InputError
from sonde.core.instrument import Detector
from sonde.detect import NAC, ODIN, PAWN, TokenStatistics
from tap_inputs import padded

DETECTORS = {
    name: found
    for name in detect.__all__
    if inspect.isclass(found := getattr(detect, name)) and issubclass(found, Detector)
}
OF_TEXTS = {"PAWN", "TokenStatistics"}
OF_STEPS = {"CLUE", "FeatureGaps", "TrajectoryVerifier"}
OF_PAIRS = {"ContrastProbe"}
OF_IMAGES = sorted(set(DETECTORS) - OF_TEXTS - OF_STEPS - OF_PAIRS)


@pytest.fixture(scope="module")
def classifier():
    net = cnn(n_classes=3)
    x = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        spread = net(x).std(0)
        net.fc.bias -= net(x).mean(0)  # all classes are predicted
        net.fc.weight /= spread[:, None]
        net.fc.bias /= spread
        net.fc.bias += 5.0  # the evidence is positive, as NNGuide wants it
        label = net(x).argmax(1).tolist()
    return net, [{"x": x[i], "label": label[i], "id": f"image {i}"} for i in range(len(x))]


@pytest.fixture(scope="module")
def reader():
    return sonde.load("sonde:stdlib")


def scores_of(table):
    return {
        (row["instrument"], row["site"], row["id"], row["position"]): row["score"]
        for row in table.to_pylist()
    }


def assert_equal_scores(guard, table):
    mine, want = scores_of(guard.table()), scores_of(table)
    assert mine.keys() == want.keys()
    assert list(mine.values()) == pytest.approx([want[k] for k in mine], rel=1e-3, abs=1e-5)
    assert len(set(want.values())) > len(want) / 2


def probe_of(detector, model, items):
    reading = detector.reading()
    gradient = {"objective": "kl_uniform"} if isinstance(detector, NAC) else {}
    options: dict[str, Any] = {"sites": "conv2", **reading, **gradient}
    return sonde.fit(detector, sonde.read(model, items, **options), calibrate=0, progress=False)


def test_every_detector_is_looked_at():
    assert set(OF_IMAGES) | OF_TEXTS | OF_STEPS | OF_PAIRS == set(DETECTORS)


@pytest.mark.slow
@pytest.mark.truth("sonde.score of the same images")
@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_call_scores_images_as_score_does(classifier, name):
    net, items = classifier
    probe = probe_of(DETECTORS[name](**DETECTORS[name].examples[0]), net, items)
    few = [{**item, "id": str(i)} for i, item in enumerate(items[:7])]
    with torch.no_grad(), Guard(net, probe, alpha=None) as guard:
        net(torch.stack([item["x"] for item in few]))
    table = sonde.score(probe, net, few, reduction="rows", progress=False)
    assert_equal_scores(guard, table)


TEXTS = [
    f"def f{i}(a):\n    return a + {i * i}\n" if i % 2 else f"x = [{i}, 'abc', {-i}]\n"
    for i in range(40)
]


@pytest.fixture(scope="module")
def whole_texts(reader):
    """Return probes of whole texts by name."""
    items, probes = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)], {}
    for detector in (PAWN(**PAWN.examples[0]), TokenStatistics()):
        reading: dict[str, Any] = {"sites": "logits", **detector.reading()}
        stream = sonde.read(reader, items, **reading)
        probes[type(detector).__name__] = sonde.fit(detector, stream, progress=False)
    return probes


@pytest.mark.slow
@pytest.mark.truth("sonde.score of the same texts")
@pytest.mark.parametrize("name", sorted(OF_TEXTS))
def test_a_call_scores_whole_texts_as_score_does(reader, whole_texts, name):
    few = TEXTS[:3]
    ids, mask = padded([list(text.encode()) for text in few])
    with torch.no_grad(), Guard(reader, whole_texts[name], alpha=None) as guard:
        reader.module(input_ids=ids, attention_mask=mask.long())
    items = [{"text": text, "id": str(i)} for i, text in enumerate(few)]
    assert_equal_scores(guard, sonde.score(whole_texts[name], reader, items, progress=False))
    assert len(guard.example[next(iter(guard.scores))]) == 3


@pytest.mark.parametrize("name", sorted(OF_TEXTS))
def test_whole_texts_are_not_scored_token_by_token(reader, whole_texts, name):
    ids = torch.tensor([list(TEXTS[0].encode())])
    with (
        Guard(reader, whole_texts[name], alpha=None),
        pytest.raises(InputError, match=r"score of a whole text .'own'.*reduction='rows'"),
    ):
        reader.module.generate(input_ids=ids, max_new_tokens=3, pad_token_id=0)


ANSWERS = [
    {"text": f"a = {i} # b = {i}", "start": 8 + len(str(i)), "end": 12 + len(str(i)),
     "label": i % 2, "pair": i // 2, "side": i % 2, "steps": [{"text": f"a = {i}"}],
     "first_error": i % 2 - 1}
    for i in range(40)
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OF_STEPS))
def test_what_comes_with_the_data_is_refused_with_the_command(reader, name):
    detector = DETECTORS[name](**DETECTORS[name].examples[0])
    by_steps = name == "TrajectoryVerifier"
    wanted = ("steps", "first_error") if by_steps else ("text", "start", "end", "label")
    wanted += ("pair", "side") if name == "FeatureGaps" else ()
    items = [{k: item[k] for k in wanted} for item in ANSWERS]
    options: dict[str, Any] = {} if by_steps else {"span": ("start", "end")}
    stream = sonde.read(reader, items, sites="layers.1", **options, **detector.reading())
    probe = sonde.fit(detector, stream, calibrate=0, progress=False)
    with pytest.raises(InputError, match=r"a column of the data.*`sonde score PROBE MODEL DATA`"):
        Guard(reader, probe, alpha=None)


@pytest.mark.slow
@pytest.mark.truth("the mean of what sonde.score gives the image as either member of a pair")
def test_a_call_is_a_member_of_no_pair(classifier):
    net, items = classifier
    pairs = [{**item, "pair": i // 2, "side": i % 2} for i, item in enumerate(items)]
    probe = probe_of(detect.ContrastProbe(), net, pairs)
    with torch.no_grad(), Guard(net, probe, alpha=None) as guard:
        net(torch.stack([item["x"] for item in items[:6]]))
    sides = [
        [{**item, "id": str(i), "pair": i, "side": side} for i, item in enumerate(items[:6])]
        for side in (0, 1)
    ]
    one, other = (scores_of(sonde.score(probe, net, few, progress=False)) for few in sides)
    mine = scores_of(guard.table())
    assert mine.keys() == one.keys()
    assert all(abs(one[k] - other[k]) > 1e-3 for k in one)
    want = [(one[k] + other[k]) / 2 for k in mine]
    assert list(mine.values()) == pytest.approx(want, rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def odin(classifier):
    net, items = classifier
    return probe_of(ODIN(temperature=2.0, eps=0.05), net, items)


def test_guards_around_a_moved_input_do_not_see_it(classifier, odin):
    net, items = classifier
    energy = probe_of(detect.Energy(), net, items)
    x = torch.stack([item["x"] for item in items[:4]])
    with Guard(net, energy, alpha=None) as outer, Guard(net, odin, alpha=None) as middle:
        with Guard(net, energy, alpha=None) as inner:
            net(x)
        assert (outer.n_forwards, middle.n_forwards, inner.n_forwards) == (1, 1, 1)
    assert torch.equal(outer.scores["energy", "conv2:out"], inner.scores["energy", "conv2:out"])


@pytest.mark.truth("the gradient of the same loss without a guard")
def test_training_goes_on_beside_a_moved_input(classifier, odin):
    net, items = classifier
    x = torch.stack([item["x"] for item in items[:4]])
    net(x).square().sum().backward()
    want = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with Guard(net, odin, alpha=None):
        net(x).square().sum().backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(net.parameters(), want, strict=True))
    net.zero_grad()
    with (
        torch.inference_mode(),
        Guard(net, odin, alpha=None),
        pytest.raises(InputError, match="inference_mode forbids"),
    ):
        net(x)
