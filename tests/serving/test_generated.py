"""Models that generate: the text, and p-values of prompt and text together."""

import pytest
import torch

import sonde
from models import gpt2
from serving_case import served
from sonde.detect import Mahalanobis

NEW = 5


def prompts(n, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (n,), generator=generator).tolist()
    return [torch.randint(3, 60, (k,), generator=generator).tolist() for k in lengths]


@pytest.mark.slow
@pytest.mark.truth("model.generate of each prompt alone; sonde.score of the same prompts")
def test_the_text_and_its_p_values():
    model, settings = gpt2(), {"max_new_tokens": NEW, "eos_token_id": 7}
    options = {"generate": settings, "sites": "blocks"}
    stream = sonde.read(model, prompts(40, 0), batch_size=8, **options)
    fitted = sonde.fit(Mahalanobis(shrinkage=0.3), stream, calibrate=0, progress=False)
    fitted = sonde.calibrate(fitted, model, prompts(30, 1), progress=False)
    given = [*prompts(6, 2), [5, 9, 11], [5, 9, 11]]
    table = sonde.score(fitted, model, given, batch_size=1, progress=False)
    keys = zip(*(table[c].to_pylist() for c in ("row", "site")), strict=True)
    values = zip(table["score"].to_pylist(), table["p"].to_pylist(), strict=True)
    wanted = dict(zip(keys, values, strict=True))
    with served(model, fitted) as client:
        answers = client.post("/predict", json={"inputs": given}).json()["answers"]
        room = model.config.n_positions - NEW
        refused = client.post("/predict", json={"inputs": [[5] * (room + 1)]})
    for i, (ids, answer) in enumerate(zip(given, answers, strict=True)):
        whole = model.generate(torch.tensor([ids]), pad_token_id=7, **settings)
        text = whole[0, len(ids) :].tolist()
        assert answer["answer"] == text[: text.index(7) + 1 if 7 in text else None]
        for site, score in answer["score"]["mahalanobis"].items():
            if (i, site) in wanted:  # equal prompts are scored once
                assert score == pytest.approx(wanted[i, site][0], rel=1e-4)
                assert abs(answer["p"]["mahalanobis"][site] - wanted[i, site][1]) < 0.04
    assert answers[-1]["p"] == answers[-2]["p"]
    assert refused.status_code == 413
    assert f"at most {room} tokens" in refused.json()["error"]


@pytest.mark.slow
@pytest.mark.truth("the most likely next token after each text alone")
def test_texts_of_like_length_share_a_forward_pass_without_a_probe():
    model, lengths = gpt2(), (7, 3, 13, 8, 5, 9, 4)  # 7 to 13 and 3 to 5: each less than twofold
    generator = torch.Generator().manual_seed(3)
    given = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in lengths]
    with served(model) as client:
        client.post("/predict", json={"inputs": given[:1]})
        before = forwards_of(client)
        answers = client.post("/predict", json={"inputs": given}).json()["answers"]
        n_forwards = forwards_of(client) - before
    assert n_forwards == 2
    for ids, answer in zip(given, answers, strict=True):
        with torch.no_grad():
            likely = model(torch.tensor([ids])).logits[0, -1].softmax(0).max(0)
        assert answer["answer"] == int(likely.indices)
        assert answer["probability"] == pytest.approx(float(likely.values), rel=1e-4)


@pytest.mark.slow
@pytest.mark.truth("the scores of each text alone")
def test_texts_share_a_forward_pass_with_a_probe_if_bits_may_differ():
    model, lengths = gpt2(), (7, 9, 13, 8, 10, 12)
    generator = torch.Generator().manual_seed(4)
    given = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in lengths]
    stream = sonde.read(model, prompts(40, 0), batch_size=8, sites="blocks")
    fitted = sonde.fit(Mahalanobis(shrinkage=0.3), stream, calibrate=0, progress=False)
    fitted = sonde.calibrate(fitted, model, prompts(30, 1), progress=False)
    found, counts = [], []
    for invariant in (True, False):
        with served(model, fitted, batch_invariant=invariant) as client:
            client.post("/predict", json={"inputs": given[:1]})
            before = forwards_of(client)
            found.append(client.post("/predict", json={"inputs": given}).json()["answers"])
            counts.append(forwards_of(client) - before)
    assert counts == [6, 1]
    for exact, padded in zip(*found, strict=True):
        assert exact["answer"] == padded["answer"]
        for site, score in exact["score"]["mahalanobis"].items():
            assert padded["score"]["mahalanobis"][site] == pytest.approx(score, rel=1e-4)


def forwards_of(client):
    text = client.get("/metrics").text
    return float(text.split("\nsonde_forwards_total ")[1].split()[0])


def test_a_model_without_a_probe_generates_if_asked():
    model = gpt2()
    with served(model, generate=f"max_new_tokens={NEW}") as client:
        (found,) = client.post("/predict", json={"inputs": [[5, 9, 11]]}).json()["answers"]
    whole = model.generate(torch.tensor([[5, 9, 11]]), max_new_tokens=NEW, pad_token_id=0)
    assert found["answer"] == whole[0, 3:].tolist()
