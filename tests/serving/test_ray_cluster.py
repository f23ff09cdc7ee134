"""``sonde serve --runner ray`` on a cluster of two nodes: each has a replica, all inputs count."""

import os
import signal
import sys

import pytest

from served_process import TESTS, body_of, running
from serving_case import net, probe
from sonde.run.bundles.fitted import Fitted

pytest.importorskip("ray.serve")


@pytest.mark.slow
@pytest.mark.truth("the number of inputs asked about; the p-values of one process")
@pytest.mark.filterwarnings("default")
def test_two_nodes_answer_with_the_same_numbers(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    # replicas import the model by its name, as the nodes were started
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    path, log = tmp_path / "probe.sonde", tmp_path / "traffic"
    probe(net()).save(path)
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    with running(path) as server:
        wanted = server.ask("/predict", body_of(6, 0))[1]["answers"]
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)  # a replica takes a processor, so each node has one replica
        options = ("--runner", "ray", "--address", cluster.address, "--replicas", 2)
        with running(path, *options, "--log", log) as server:
            for seed in range(24):
                code, found = server.ask("/predict", body_of(6, seed))
                while code == 503:
                    code, found = server.ask("/predict", body_of(6, seed))
                assert code == 200
                if seed == 0:
                    assert [a["p"] for a in found["answers"]] == [a["p"] for a in wanted]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
    finally:
        cluster.shutdown()
    files = sorted(log.rglob("*.sonde"))
    assert [file.parent.name for file in files] == ["0", "1"]
    counts = [Fitted.load(file).header["data"]["n_examples"] for file in files]
    assert sum(counts) == 24 * 6
    assert min(counts) > 0
