"""Answers: the numbers of sonde score, whatever the batch; labels; the Open Inference Protocol."""

import asyncio
import tracemalloc

import pytest
import torch
from torch import nn

import sonde
from serving_case import DIM, asked, net, probe, rows, run_apart, served
from sonde.detect import Energy, Mahalanobis
from sonde.run.scoring.by_input import by_input
from sonde.serving import Limits, app
from sonde.serving.feedback import Feedback
from sonde.serving.refusals import Refusal
from sonde.serving.served import Answer


@pytest.fixture(scope="module")
def model():
    return net()


@pytest.fixture(scope="module")
def fitted(model):
    return probe(model)


def numbers(answer):
    return {name: value for name, value in answer.items() if name != "id"}


@pytest.mark.slow
@pytest.mark.truth("sonde.score and by_input on the same rows")
def test_numbers_are_those_of_score_whatever_the_batch(model, fitted):
    items = [*rows(8, 2), *rows(3, 3, shift=4.0)]
    table = sonde.score(fitted, model, items, batch_invariant=True, progress=False)
    each = zip(*(table[c].to_pylist() for c in ("row", "instrument", "site")), strict=True)
    values = zip(table["score"].to_pylist(), table["p"].to_pylist(), strict=True)
    wanted = dict(zip(each, values, strict=True))
    lines = by_input(table, fitted).table.to_pylist()
    with served(model, fitted, batch_invariant=True, limits=Limits(batch=6)) as client:
        together = asked(client, items)
        alone = [asked(client, [item])[0] for item in items]
    assert [numbers(a) for a in together] == [numbers(a) for a in alone]
    assert len(wanted) == len(items) * len(fitted.scorers)
    for (i, method, site), (score, p) in wanted.items():
        assert (together[i]["score"][method][site], together[i]["p"][method][site]) == (score, p)
    for answer, line in zip(together, lines, strict=True):
        assert (answer["p_all"], answer["alarm"]) == (line["p"], line["alarm"])
        loudest = answer["loudest"]
        assert (loudest["detector"], loudest["site"]) == (line["loudest"], line["loudest_site"])
    assert [answer["alarm"] for answer in together[8:]] == [True, True, True]
    softmax = model(torch.stack(items)).softmax(1).max(1)
    names = [f"class {i}" for i in softmax.indices.tolist()]  # nobody named them
    assert [answer["answer"] for answer in together] == names
    assert [a["probability"] for a in together] == pytest.approx(softmax.values.tolist(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.truth("the answer that each row has alone")
def test_concurrent_requests_keep_their_own_answers(model, fitted):
    items = rows(24, 5)

    async def all_at_once():
        limits = Limits(batch=8, wait_seconds=0.01)
        made = app(model, fitted, limits=limits, batch_invariant=True)
        service = made.state.service
        async with made.router.lifespan_context(made):
            while not service.is_ready:
                await asyncio.sleep(0.01)
            inputs = [[x.tolist()] for x in items]
            alone = [await service.answer(f"alone{i}", each) for i, each in enumerate(inputs)]
            each = (service.answer(f"together{i}", given) for i, given in enumerate(inputs))
            together = await asyncio.gather(*each)
        return alone, together, service.figures.text()

    alone, together, text = run_apart(all_at_once())
    assert together == alone
    assert len({one.verdict.p for (one,) in together}) > 12
    assert "sonde_inputs_total 48.0" in text
    forwards = float(text.split("\nsonde_forwards_total ")[1].split()[0])
    assert forwards < 24 + 12, "requests at the same time shared forwards"


@pytest.mark.truth("the answers of /predict; the fields of the protocol")
def test_open_inference_protocol(model, fitted):
    items = rows(4, 6)
    with served(model, fitted) as client:
        plain = asked(client, items)
        name = "Sequential"
        described = client.get(f"/v2/models/{name}").json()
        tensor = {"name": "inputs", "datatype": "FP32", "shape": [4, DIM]}
        body = {"id": "mine", "inputs": [{**tensor, "data": torch.stack(items).flatten().tolist()}]}
        found = client.post(f"/v2/models/{name}/infer", json=body).json()
        wrong = client.post("/v2/models/other/infer", json=body)
        short = {**body, "inputs": [{**tensor, "data": [0.0]}]}
        refused = client.post(f"/v2/models/{name}/infer", json=short)
        assert client.get(f"/v2/models/{name}/ready").json() == {"ready": True}
        assert client.get("/v2/health/live").status_code == 200
    assert (found["id"], found["model_name"]) == ("mine", name)
    outputs = {one["name"]: one["data"] for one in found["outputs"]}
    assert outputs.keys() == {one["name"] for one in described["outputs"]}
    assert outputs["p_all"] == [answer["p_all"] for answer in plain]
    assert outputs["p:knn:1:out"] == [answer["p"]["knn"]["1:out"] for answer in plain]
    assert outputs["answer"] == [str(answer["answer"]) for answer in plain]
    assert wrong.status_code == 404
    assert "20 numbers" in refused.json()["error"]


def other(answer):
    return "class 1" if answer == "class 0" else "class 0"


@pytest.mark.truth("counts of what was told; Clopper and Pearson's interval of 6 of 10 in tables")
def test_feedback_counts_each_answer_once(model, fitted):
    items = [*rows(8, 7), *rows(2, 8, shift=5.0)]
    with served(model, fitted) as client:
        answers = asked(client, items)
        told = [
            {"id": a["id"], "truth": a["answer"] if i % 3 else other(a["answer"])}
            for i, a in enumerate(answers)
        ]
        found = client.post("/feedback", json={"feedback": told}).json()
        again = client.post("/feedback", json=told[0])
        figures = client.get("/feedback").json()
    assert found == {"taken": 10, "correct": 6}
    assert again.status_code == 404
    n_alarms = sum(a["alarm"] for a in answers)
    assert figures["alarms"]["n"] == n_alarms >= 2
    assert figures["rest"]["n"] == 10 - n_alarms
    bounds = [figures["all"]["low"], figures["all"]["high"]]
    assert bounds == pytest.approx([0.2624, 0.8784], abs=5e-5)


def test_feedback_compares_texts_and_numbers_and_forgets_the_oldest():
    feedback, given = Feedback(kept=5), [Answer(x) for x in (-1.0, 3, "cat", [4, 5], "3", 0.0, "z")]
    feedback.remember([f"id-{i}" for i in range(7)], given)
    for name in ("id-0", "id-1", "", "of another"):
        with pytest.raises(Refusal, match="the last 5"):
            feedback.take(name, 3)
    assert feedback.take("id-2", "cat")
    assert feedback.take("id-3", "[4, 5]")
    assert feedback.take("id-4", 3)
    assert feedback.take("id-5", 0)
    assert not feedback.take("id-6", "cat")
    feedback.remember(["a", "b", "c"], [Answer(-1.0), Answer(3), Answer(2**60)])
    assert not feedback.take("a", -2)  # Python's hashes of -1 and -2 are equal
    assert feedback.take("b", 3.0)
    assert feedback.take("c", 2**60)


def test_feedback_takes_no_more_memory_for_more_or_longer_answers():
    feedback = Feedback(kept=2000)
    tracemalloc.start()
    for i in range(2000):
        feedback.remember([f"{i:016x}-0"], [Answer("a" * 1000 + str(i))])
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 50_000


class Crowded(nn.Module):
    """A classifier whose logits depend on the number of inputs in the forward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.sizes = nn.ReLU(), nn.Linear(DIM, 3), []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.head(self.body(x)) * (1 + 1e-4 * len(x))


@pytest.mark.parametrize("method", [Mahalanobis(), Energy()])
@pytest.mark.truth("the number of inputs in each forward pass")
def test_copies_run_through_the_model_only_if_a_detector_needs_them(method):
    model = Crowded().eval()
    stream = sonde.read(model, rows(60, 0), sites=["body"], logits=True)
    fitted = sonde.fit(method, stream, calibrate=0, progress=False)
    with served(model, fitted, batch_invariant=True) as client:
        first = asked(client, rows(1, 1))
        model.sizes.clear()
        again = asked(client, rows(1, 1))
        alone = [*model.sizes]
        model.sizes.clear()
        many = asked(client, [*rows(1, 1), *rows(4, 2)])
    assert alone == ([1] if isinstance(method, Mahalanobis) else [32])
    assert model.sizes == ([5] if isinstance(method, Mahalanobis) else [32])
    assert first[0]["score"] == again[0]["score"] == many[0]["score"]


def test_without_a_probe_the_model_alone_answers(model):
    items = rows(3, 9)
    with served(model) as client:
        answers = asked(client, items)
    numbers = model(torch.stack(items)).argmax(1).tolist()
    assert [a["answer"] for a in answers] == [f"class {i}" for i in numbers]
    assert all(a.keys() == {"id", "answer", "probability"} for a in answers)
