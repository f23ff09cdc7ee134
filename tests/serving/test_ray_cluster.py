"""``sonde serve --runner ray`` on a cluster of two nodes: to a client it is one server."""

import os
import re
import signal
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from served_process import TESTS, body_of, running
from serving_case import net, probe, rows
from sonde.run.fitting.fitted import Fitted

pytest.importorskip("ray.serve")
INPUTS = re.compile(r'^sonde_inputs_total\{replica="(\d+)"\} ([\d.]+)$', re.MULTILINE)


def counted(server):
    """Return the inputs of each replica by the metrics of whichever replica answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        return {name: float(n) for name, n in INPUTS.findall(answer.read().decode())}


def answers(server, inputs):
    body = {"inputs": [x.tolist() for x in inputs]}
    code, content, until = 503, {}, time.monotonic() + 60
    while code == 503 and time.monotonic() < until:  # the second replica still loads
        try:
            code, content = server.ask("/predict", body)
        except ValueError:  # the second node's proxy, on the same port, has no routes yet
            time.sleep(0.1)
    assert code == 200
    return content["answers"]


@pytest.mark.slow
@pytest.mark.truth("the number of inputs asked about; the p-values of one process")
@pytest.mark.filterwarnings("default")
def test_two_nodes_are_one_server(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    # replicas import the model by its name, as the nodes were started
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    # with one proxy for both nodes, the replica beside it would get every request
    monkeypatch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")
    path, log = tmp_path / "probe.sonde", tmp_path / "traffic"
    probe(net()).save(path)
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    with running(path, "--batch-invariant") as server:
        wanted = server.ask("/predict", body_of(6, 0))[1]["answers"]
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)  # a replica takes a processor, so each node has one replica
        options = ("--runner", "ray", "--address", cluster.address, "--replicas", 2)
        options += ("--batch-invariant",)  # requests at the same time share batches
        with running(path, *options, "--log", log) as server:
            given, until = [], time.monotonic() + 100
            with ThreadPoolExecutor(4) as pool:
                while not any((log / "1").glob("*.sonde")):  # the second replica has answered
                    assert time.monotonic() < until
                    each = pool.map(lambda seed: answers(server, rows(6, seed)), range(8))
                    given += [answer for part in each for answer in part]
            assert [a["p"] for a in given[:6]] == [a["p"] for a in wanted]
            for seed in range(6):
                given += answers(server, rows(20, seed, shift=4.0))
            # one replica takes the truths about the answers of both
            truths = [{"id": a["id"], "truth": a["answer"]} for a in given]
            for part in (truths[i : i + 200] for i in range(0, len(truths), 200)):
                outcome = server.ask("/feedback", {"feedback": part})
                assert outcome == (200, {"taken": len(part), "correct": len(part)})
            assert server.ask("/feedback", truths[0])[0] == 404, "an answer was counted twice"
            until = time.monotonic() + 60
            while (
                sum(counted(server).values()) != len(given)
                or any(server.ask("/feedback")[1]["all"]["n"] != len(given) for _ in range(6))
                or not server.ask("/changes")[1]["events"]
            ):
                assert time.monotonic() < until, (counted(server), len(given))
                time.sleep(0.5)
            for _ in range(6):  # whichever replica answers
                figures = counted(server)
                assert (sorted(figures), sum(figures.values())) == (["0", "1"], len(given))
                assert server.ask("/feedback")[1]["all"]["n"] == len(given)
            events = [server.ask("/changes")[1]["events"] for _ in range(6)]
            assert [len(each) for each in events] == [1] * 6
            assert len({each[0]["first"]["told"] for each in events}) == 1
            server.process.send_signal(signal.SIGTERM)
            output, _ = server.process.communicate(timeout=100)
            assert server.process.returncode == 0, output
    finally:
        cluster.shutdown()
    files = sorted(log.rglob("*.sonde"))
    assert [file.parent.name for file in files] == ["0", "1"]
    counts = [Fitted.load(file).header["data"]["n_examples"] for file in files]
    assert sum(counts) == len(given)
    assert min(counts) > 0
