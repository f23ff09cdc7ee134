"""Replicas on Ray Serve that grow with the load, as a deployment of your own.

Run it: serve run on_ray:replicas
"""

import os

from ray import serve

import sonde.serving


def build():
    """Return the application; called once in each replica."""
    model = os.environ.get("MODEL", "sonde:digits")
    probe, traffic = os.environ.get("PROBE"), os.environ.get("TRAFFIC")
    return sonde.serving.app(model, probe, log=traffic, shared=traffic)


@serve.deployment(
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8},
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress(build)
class Replica:
    """The served model in one replica."""


replicas = Replica.bind()
