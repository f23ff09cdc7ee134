"""Several replicas of one server: feedback, metrics and changes are those of all of them."""

import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from served_process import body_of, running
from serving_case import net, probe, rows
from sonde.run.fitting.fitted import Fitted
from sonde.serving.feedback import Feedback
from sonde.serving.peers import Peers
from sonde.serving.refusals import Refusal
from sonde.serving.replica_folder import ReplicaFolder
from sonde.serving.served import Answer

INPUTS = re.compile(r'^sonde_inputs_total\{replica="(\d+)"\} ([\d.]+)$', re.M)


def counted(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        return {name: float(n) for name, n in INPUTS.findall(answer.read().decode())}


def worker_of(parent):
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return next(pid for pid, command in commands.items() if b"spawn_main" in command)


def asked_until_both(server, given):
    """Ask from eight clients until both replicas have answered."""

    def ask(seed):
        code, found = server.ask("/predict", body_of(4, seed))
        assert code == 200, found
        return found["answers"]

    until = time.monotonic() + 60
    with ThreadPoolExecutor(8) as pool:
        while len([n for n in counted(server).values() if n]) < 2:
            assert time.monotonic() < until
            for answers in pool.map(ask, range(len(given), len(given) + 32)):
                given += answers
            time.sleep(1.1)


@pytest.mark.slow
@pytest.mark.truth("the answers that the clients counted")
def test_feedback_metrics_and_changes_are_those_of_all_replicas(tmp_path):
    probe(net()).save(tmp_path / "p.sonde")
    options = (tmp_path / "p.sonde", "--replicas", 2, "--commit", 0.5, "--log", tmp_path / "log")
    with running(*options) as server:
        given = []
        asked_until_both(server, given)
        for one in given:
            told = {"id": one["id"], "truth": one["answer"]}
            assert server.ask("/feedback", told) == (200, {"taken": 1, "correct": 1})
        assert server.ask("/feedback", told)[0] == 404, "an answer was counted twice"
        time.sleep(2.5)
        for _ in range(10):  # whichever replica answers
            assert sum(counted(server).values()) == len(given)
            assert server.ask("/feedback")[1]["all"]["n"] == len(given)
        for seed in range(30):
            body = {"inputs": [x.tolist() for x in rows(4, 100 + seed, shift=6.0)]}
            assert server.ask("/predict", body)[0] == 200
        time.sleep(2.5)
        found = [server.ask("/changes")[1]["events"] for _ in range(10)]
        assert [len(events) for events in found] == [1] * 10
        assert all(events == found[0] for events in found)
        kind = server.ask("/changes/ack", {})[1]["acknowledged"]
        assert kind["first"] == found[0][0]["first"]
        assert kind["ended_by"] == "acknowledged"
        time.sleep(2.5)
        assert {server.ask("/changes")[1]["events"][0]["ended_by"] for _ in range(10)} == {
            "acknowledged"
        }
        worker = worker_of(server.process.pid)
        os.kill(worker, signal.SIGKILL)
        for seed in range(20):  # a new worker accepts nothing before it can answer
            for _ in range(3):
                try:
                    code, _ = server.ask("/predict", body_of(1, seed))
                except OSError:  # what the killed worker had accepted
                    continue
                assert code == 200
            time.sleep(0.3)
        assert server.ask("/changes")[1]["events"][0]["first"] == found[0][0]["first"]


@pytest.mark.slow
@pytest.mark.truth("the processes that run, and the inputs that were counted")
def test_replicas_end_with_a_killed_parent_and_commit_what_they_answered(tmp_path):
    with running("--replicas", 2, "--commit", 600, "--log", tmp_path / "log") as server:
        given = []
        asked_until_both(server, given)
        parent = server.process.pid
        folder = Path(f"/proc/{parent}/task/{parent}/children")
        replicas = [int(pid) for pid in folder.read_text().split()]
        server.process.kill()
        server.process.wait()
        until = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in replicas):
            assert time.monotonic() < until, "replicas outlive their parent"
            time.sleep(0.1)
    files = [path for path in (tmp_path / "log").rglob("*.sonde") if path.is_file()]
    assert sum(Fitted.load(path).header["data"]["n_examples"] for path in files) == len(given)


def test_an_answer_of_another_replica_takes_feedback_once(tmp_path):
    each = [Feedback(kept=50), Feedback(kept=50)]
    for feedback, own in zip(each, (ReplicaFolder(tmp_path), ReplicaFolder(tmp_path)), strict=True):
        feedback.share(own.path)
    each[0].remember(["a", "b"], [Answer("cat"), Answer(3)])
    assert each[1].take("a", "cat")
    assert not each[1].take("b", 4)
    for feedback in each:
        with pytest.raises(Refusal, match="accepts feedback once"):
            feedback.take("a", "cat")
    assert each[1].figures([each[0].counts()])["all"]["n"] == 2


def test_one_replica_leads_and_reads_each_message_once(tmp_path):
    folders = [ReplicaFolder(tmp_path) for _ in range(2)]
    first, second = (Peers(folder) for folder in folders)
    assert first.try_to_lead()
    assert not second.try_to_lead()
    for i in range(3):
        second.send({"n": i})
    assert [message["n"] for message in first.received()] == [0, 1, 2]
    assert [*first.received()] == []
    second.publish({"changes": None})
    assert [*first.others()] == ["1"]
    (folders[1].path / "status.json").write_text("{")
    assert first.others() == {}
    first.close()
    assert second.try_to_lead()


def test_the_lead_of_a_lost_machine_is_taken_and_a_slow_leader_steps_back(tmp_path, monkeypatch):
    first, second = (Peers(ReplicaFolder(tmp_path)) for _ in range(2))
    assert first.try_to_lead()
    first.publish({})
    monkeypatch.setattr("sonde.serving.peers.STALE_SECONDS", 0.2)
    assert not second.try_to_lead()
    time.sleep(0.3)  # nothing is heard of the first
    assert second.try_to_lead()
    second.publish({})
    assert not first.try_to_lead()
    assert (first.is_leader, second.is_leader) == (False, True)
