"""``sonde serve --runner ray`` on a cluster of two nodes: each has a replica, all inputs count."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from served_process import TESTS, body_of, running
from serving_case import net, probe
from sonde.run.fitting.fitted import Fitted

pytest.importorskip("ray.serve")


@pytest.mark.slow
@pytest.mark.truth("the number of inputs asked about; the p-values of one process")
@pytest.mark.filterwarnings("default")
def test_two_nodes_answer_with_the_same_numbers(tmp_path, monkeypatch):
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

            def answers(seed):
                code, found = server.ask("/predict", body_of(6, seed))
                while code == 503:  # the second replica still loads
                    code, found = server.ask("/predict", body_of(6, seed))
                assert code == 200
                return found["answers"]

            every, until = [], time.monotonic() + 100
            with ThreadPoolExecutor(4) as pool:
                while not any(
                    (log / "1").glob("*.sonde")
                ):  # until the second replica has answered, too
                    assert time.monotonic() < until
                    every += pool.map(answers, range(8))
            assert [a["p"] for a in every[0]] == [a["p"] for a in wanted]
            server.process.send_signal(signal.SIGTERM)
            said, _ = server.process.communicate(timeout=100)
            assert server.process.returncode == 0, said
    finally:
        cluster.shutdown()
    files = sorted(log.rglob("*.sonde"))
    assert [file.parent.name for file in files] == ["0", "1"]
    counts = [Fitted.load(file).header["data"]["n_examples"] for file in files]
    assert sum(counts) == 6 * len(every)
    assert min(counts) > 0
