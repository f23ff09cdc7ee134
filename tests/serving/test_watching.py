"""Watching: changes are told with time and site, false alarms are rare, the page is safe."""

import json
import re

import numpy as np
import pytest
import torch

from serving_case import asked, net, probe, rows, served
from sonde.alarms import ChangeDetector
from sonde.serving.changes import Changes, Seen
from sonde.serving.still_inputs import FrozenColumns, Repetitions
from sonde.serving.verdicts import Verdict
from sonde.serving.watched_scores import LONGEST, reference_scores
from sonde.stats import HeldScores


@pytest.fixture(scope="module")
def model():
    return net()


@pytest.fixture(scope="module")
def fitted(model):
    return probe(model)


def verdicts_of(fitted, scores, loud=None, add=0.0):
    """Verdicts with made-up scores; those at the site ``loud`` are larger."""
    return [
        Verdict(
            None, None, {key: (s + add * (key[1] == loud), None) for key in fitted.scorers}, None
        )
        for s in scores
    ]


def held(fitted, key):
    found = fitted.scorers[key].calibration
    return np.concatenate([found.scores.numpy(), found.tail.numpy()])


@pytest.mark.truth("the input at which the change was planted")
def test_a_planted_change_is_told_with_its_site_and_beginning(fitted):
    rng = np.random.default_rng(0)
    changes = Changes(fitted)
    keys = [*fitted.scorers]
    pools = {key: held(fitted, key) for key in keys}

    def draw(i):
        each = {}
        for key in keys:
            quantile = rng.random()
            if i >= 1200 and key[1] == "2:out":
                quantile = 0.8 + 0.2 * quantile
            each[key] = (float(np.quantile(pools[key], quantile)) + 1e-9 * rng.random(), None)
        return Verdict(None, None, each, None)

    for i in range(1500):
        changes.update([draw(i)], at=1000.0 + i)
        if changes.alarms:
            break
    (alarm,) = list(changes.alarms)[:1]
    assert alarm.site == "2:out"
    assert 1200 <= alarm.told < 1260
    assert 1150 <= alarm.began <= alarm.told
    assert alarm.told_at == 1000.0 + alarm.told
    assert alarm.began_at == 1000.0 + alarm.began


@pytest.mark.truth("Markov's inequality: P(alarm within n) <= n / patience")
def test_false_alarms_are_as_rare_as_promised(fitted):
    rng = np.random.default_rng(1)
    n_false, n, patience = 0, 60, 300
    for _ in range(40):
        changes = Changes(fitted, patience=patience)
        scores = rng.normal(size=n)
        for key in fitted.scorers:  # a stream of its own, learnt from nothing
            changes._watched[key].detector = ChangeDetector(
                rng.normal(size=50), patience=patience * len(fitted.scorers)
            )
        n_false += bool(changes.update(verdicts_of(fitted, scores), at=0.0))
    assert n_false / 40 <= n / patience


@pytest.mark.truth("the quantiles of the scores themselves")
def test_the_reference_represents_scores_whose_tail_is_kept_apart():
    scores = torch.randn(4000, 1, generator=torch.Generator().manual_seed(4))
    draw = torch.randperm(4000, generator=torch.Generator().manual_seed(5))
    kept = HeldScores(m=400, top=300).observe(scores, draw * 0, draw).calibration()
    found = reference_scores(kept, 10_000, seed=0)
    assert len(kept.tail) == 300
    for q in (0.1, 0.5, 0.9, 0.97):
        share = float((scores[:, 0] <= np.quantile(found, q)).float().mean())
        assert abs(share - q) < 0.05


def test_memory_of_a_long_stream_is_bounded():
    detector = ChangeDetector(range(10), patience=1e9)
    for score in np.random.default_rng(2).normal(size=300):
        detector.update(score)
    renewed = detector.renewed(100, seed=3)
    assert len(renewed._ranks.scores) == 100
    assert set(renewed._ranks.scores) <= set(detector._ranks.scores)
    assert renewed.patience == 1e9
    assert LONGEST <= 20_000


def test_alarms_reach_the_dashboard_and_inputs_only_if_kept(model, fitted):
    hostile = "<script>alert(1)</script>"
    items = [*rows(6, 1), *rows(4, 2, shift=6.0)]
    for keep in (0, 2):
        with served(model, fitted, keep_inputs=keep) as client:
            answers = asked(client, items)
            state = vars(client.app)["state"].service.state()
            page = client.get("/")
        assert json.dumps(state, allow_nan=False)
        assert (state["inputs"], state["n_alarms"]) == (10, sum(a["alarm"] for a in answers))
        assert state["n_alarms"] >= 4
        assert [one["id"] for one in state["alarms"]] == [a["id"] for a in answers if a["alarm"]][
            ::-1
        ]
        assert sum("input" in one for one in state["alarms"]) == keep
        assert sum(state["p"]) == 10
        assert hostile not in page.text
    policy = page.headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r"script-src 'nonce-([^']+)'", policy))
    assert f'<script nonce="{nonce}">' in page.text
    assert "innerHTML" not in page.text
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page.text)
    assert "prefers-color-scheme: dark" in page.text


def test_events_are_a_stream_that_ends(model, fitted, monkeypatch):
    monkeypatch.setattr("sonde.serving.application.EVENTS", 1)
    with served(model, fitted) as client:
        asked(client, rows(3, 3))
        found = client.get("/events")
    assert found.headers["content-type"].startswith("text/event-stream")
    lines = found.text.split("\n\n")
    assert lines[0] == "retry: 300"
    assert json.loads(lines[1].removeprefix("data: "))["inputs"] == 3


def test_metrics_have_bounded_labels_and_count_alarms(model, fitted):
    from prometheus_client.parser import text_string_to_metric_families

    with served(model, fitted) as client:
        answers = asked(client, [*rows(5, 4), torch.full((5,), 9.0)])
        for i in range(20):
            client.get(f"/strange/{i}")
            client.post("/predict", content=b"{", headers={"content-type": "application/json"})
        text = client.get("/metrics").text
    found = {f.name: f.samples for f in text_string_to_metric_families(text)}
    values = {s.name: s.value for s in found["sonde_input_alarms"]}
    assert values["sonde_input_alarms_total"] == sum(a["alarm"] for a in answers)
    labels = {(s.labels["route"], s.labels["code"]) for s in found["sonde_requests"]}
    assert labels <= {
        (r, c) for r in ("predict", "health", "metrics") for c in ("200", "400", "503")
    }
    assert "strange" not in text
    assert {s.labels["site"] for s in found["sonde_rows"]} == {"1:out", "2:out"}


def stream_of(fitted, changed):
    """Changes after 300 in-distribution inputs and then inputs whose scores are ``changed``."""
    rng = np.random.default_rng(7)
    changes, keys = Changes(fitted), [*fitted.scorers]
    pools = {key: held(fitted, key) for key in keys}

    def feed(n, change, first=0):
        for i in range(first, first + n):
            drawn = {k: float(rng.choice(pools[k])) + 1e-9 * rng.random() for k in keys}
            each = {k: (change(x), None) for k, x in drawn.items()}
            seen = Seen(str(i).encode(), {}, f"class {rng.integers(3)}", rng.random())
            changes.update([Verdict(None, None, each, None)], float(i), [seen])

    feed(300, lambda x: x)
    assert not changes.events
    feed(400, changed, 300)
    return changes, feed


@pytest.mark.truth("the input at which the change was planted")
def test_scores_that_became_too_ordinary_are_one_event_that_returns(fitted):
    changes, feed = stream_of(fitted, lambda x: 0.2 * x)
    (event,) = changes.events
    assert 300 <= event.first.told < 420
    assert event.ended_at is None
    assert {key for key, _ in event.places} >= {key for key, _ in fitted.scorers}
    feed(600, lambda x: x, 700)
    assert changes.events[0].ended_by == "returned"
    assert changes.events[0].first == event.first


def test_an_acknowledged_change_is_the_new_normal(fitted):
    changes, feed = stream_of(fitted, lambda x: 3 * x)
    again = Changes(fitted)
    again.restore(json.loads(json.dumps(changes.state())))
    assert again.current == changes.current
    assert changes.acknowledge(701.0).ended_by == "acknowledged"
    assert changes.acknowledge(702.0) is None
    feed(400, lambda x: 3 * x, 700)
    assert len(changes.events) == 1


@pytest.mark.truth("distinct inputs are exchangeable, copies are not")
def test_copies_in_a_row_count_once(fitted):
    rng = np.random.default_rng(8)
    (key, *_) = fitted.scorers
    n_alarms = {True: 0, False: 0}
    for known in n_alarms:
        for _ in range(6):
            changes = Changes(fitted)
            for i in range(250):
                score = float(rng.choice(held(fitted, key)))
                for _ in range(5):
                    seen = Seen(str(i).encode() if known else b"")
                    changes.update([Verdict(None, None, {key: (score, None)}, None)], 0.0, [seen])
            n_alarms[known] += bool(changes.events)
            assert changes.repetitions.n_repeated == known * 1000
    assert n_alarms[True] == 0
    assert n_alarms[False] >= 4


def test_a_dead_feed_and_a_frozen_column_are_told():
    columns = FrozenColumns({"age": (40.0, 9.0), "flag": (1.0, 0.0), "dose": (0.5, 0.1)})
    rng, repetitions = np.random.default_rng(9), Repetitions()
    found = [columns.add({"age": rng.normal(), "flag": 1.0, "dose": 0.5}) for _ in range(64)]
    assert found[-2:] == [[], ["dose"]]
    assert columns.add({"age": 1.0, "flag": 1.0, "dose": 0.4}) == []
    for i in range(100):
        repetitions.add(str(i).encode())
    assert not repetitions.is_still
    for _ in range(64):
        repetitions.add(b"0")
    assert repetitions.is_still


@pytest.mark.slow
def test_a_change_is_shown_acknowledged_and_kept_over_a_restart(model, fitted, tmp_path):
    def quiet(client):
        service = vars(client.app)["state"].service
        service._watcher.submit(lambda: None).result()
        return service

    kind = {"headers": {"Content-Type": "application/json"}, "content": b"{}"}
    with served(model, fitted, log=tmp_path) as client:
        asked(client, rows(60, 40, shift=4.0))
        (event,) = quiet(client).changes.events
        assert "sonde_changed 1.0" in client.get("/metrics").text
        assert client.get("/changes").json()["events"][0]["ended_at"] is None
        found = client.post("/changes/ack", **kind).json()["acknowledged"]
        assert found["ended_by"] == "acknowledged"
        told = asked(client, rows(1, 1))[0]
        client.post("/feedback", json={"id": told["id"], "truth": told["answer"]})
    with served(model, fitted, log=tmp_path) as client:
        asked(client, rows(1, 2))
        assert quiet(client).changes.events[0].first == event.first
        assert client.get("/feedback").json()["all"]["n"] == 1
        assert client.post("/changes/ack", **kind).json() == {"acknowledged": None}


@pytest.mark.truth("the inputs that were refused")
def test_inputs_without_a_column_are_a_change_that_lasts(fitted):
    changes, opened = Changes(fitted), []
    for i in range(1500):
        if i >= 500 and i % 5 < 2:
            opened += changes.refuse([b"%d" % i], ["dose"], float(i))
            continue
        opened += changes.update([Verdict(None, None, {}, None)], float(i), [Seen(b"%d" % i)])
    refused = [one for one in opened if one.detector == "refused inputs"]
    assert [one.site for one in refused] == ["column dose"]
    assert 495 <= refused[0].began <= refused[0].told <= 620
    current = changes.current
    assert current is not None
    assert ("refused inputs", "column dose") in current.places, "it lasts, and has not returned"


@pytest.mark.truth("the column that was moved")
def test_a_change_names_the_column_whose_values_moved(fitted, monkeypatch):
    from sonde.serving import changes as module

    scales = {"age": (0.0, 1.0), "dose": (0.0, 1.0), "flag": (1.0, 0.0)}
    monkeypatch.setattr(module, "scales_in", lambda _: scales)
    rng, changes = np.random.default_rng(5), Changes(fitted)
    for i in range(900):
        numbers = {"age": rng.normal() + (i >= 500), "dose": rng.normal(), "flag": 1.0}
        seen = Seen(str(i).encode(), numbers)
        changes.update([Verdict(None, None, {}, None)], 0.0, [seen])
    (alarm,) = changes.alarms
    assert (alarm.detector, alarm.site) == ("values", "column age")
    assert 500 <= alarm.told < 600
