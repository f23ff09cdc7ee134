"""Callers: a burst of one caller is no change of the traffic, a change of all callers is."""

from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest

from serving_case import net, probe, rows, served
from sonde.run.fitting.fitted import Fitted
from sonde.serving.callers import Callers, callers_of
from sonde.serving.changes import Changes, Seen
from sonde.serving.monitor import _packed, _unpacked
from sonde.serving.verdicts import Verdict

N, BEFORE, BURST = 10, 2000, 600


def names_of(rng, loud):
    """Callers at random; of the last inputs the fraction ``loud`` is of caller 0."""
    names = rng.integers(N, size=BEFORE + BURST)
    names[BEFORE:][rng.random(BURST) < loud] = 0
    return names


@pytest.mark.truth("ten callers with a tenth of the traffic each")
@pytest.mark.parametrize("loud", [0.0, 0.5, 0.9])
def test_a_caller_counts_at_its_usual_fraction(loud):
    names, callers = names_of(np.random.default_rng(1), loud), Callers()
    counted = [name for name in names.tolist() if not callers.is_joined(b"%d" % name)]
    assert callers.n_joined == len(names) - len(counted)
    last = Counter(counted[-150:])
    assert last[0] / 150 < 0.2
    assert len(last) == N
    assert len(counted) > 0.6 * BEFORE


@pytest.mark.truth("the caller that asks in a burst, and the planted change of all callers")
def test_a_burst_is_a_change_only_without_names():
    rng = np.random.default_rng(2)
    means = np.linspace(0.9, 0.2, N)

    def first_alarm(names, shift, named):
        changes = Changes(Mock(spec=Fitted, scorers={}, header={}))
        for i, name in enumerate(names.tolist()):
            sure = means[name] + 0.1 * rng.random() + shift * (i >= BEFORE)
            seen = Seen(b"%d" % i, {}, None, sure, b"%d" % name if named else b"")
            if changes.update([Verdict(None, None, {}, None)], 0.0, [seen]):
                return i
        return None

    def alarm_of(names, shift, named):
        alarm = first_alarm(names, shift, named)
        assert alarm is not None
        return alarm

    burst, usual = names_of(rng, 0.9), names_of(rng, 0.0)
    assert BEFORE <= alarm_of(burst, 0.0, named=False) < BEFORE + 60
    assert first_alarm(burst, 0.0, named=True) is None
    assert BEFORE <= alarm_of(usual, 0.3, named=True) < BEFORE + 400


def test_a_constant_name_leaves_nothing_out():
    callers = Callers()
    joined = [callers.is_joined(b"the proxy") for _ in range(1000)]
    assert sum(joined) < 64
    assert not any(joined[64:])
    assert not any(callers.is_joined(b"") for _ in range(1000))


def test_the_field_is_not_read_by_the_model():
    given = [{"age": 1, "user": "a"}, {"age": 2}, [3]]
    inputs, callers = callers_of(given, "header", "user")
    assert inputs == [{"age": 1}, {"age": 2}, [3]]
    assert callers[1] == callers[2] != callers[0]
    assert callers_of(given, "", None) == (given, [b""] * 3)


@pytest.mark.slow
def test_header_and_field_reach_the_change_detectors():
    model = net()
    fitted = probe(model)
    with served(model, fitted, client_field="user") as client:
        service = vars(client.app)["state"].service

        def ask(i, name, **headers):
            row = {"x": rows(1, i)[0].tolist(), **({"user": name} if name else {})}
            found = client.post("/predict", json={"inputs": [row]}, headers=headers)
            assert found.status_code == 200, found.text
            assert "ignored" not in found.json()["answers"][0]

        for i in range(70):
            ask(i, "a" if i % 2 else "")
        for i in range(20):
            ask(100 + i, "", **{"X-Client": "b"})
        service._watcher.submit(lambda: None).result()
        state = service.state()
        assert state["joined"] == service.changes.callers.n_joined >= 19
        assert f"sonde_inputs_joined {state['joined']}.0" in client.get("/metrics").text


def test_replicas_hand_over_the_caller():
    key = ("knn", "1:out")
    seen = Seen(b"content", {"age": 1.0}, "class 1", 0.5, b"caller")
    packed = [*_packed([key], [(Verdict(None, None, {key: (2.0, None)}, None), seen)])]
    assert [one for _, one in _unpacked([key], packed)] == [seen]
