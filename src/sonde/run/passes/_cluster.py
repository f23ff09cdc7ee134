"""Connect to a Ray cluster, and check whether it can run a plan."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sonde.core.errors import InputError, failed_import
from sonde.core.wording import install_extra, plural
from sonde.run.passes.crew import Crew, n_cores

STORE_BYTES = 100 * 2**20
REACH_SECONDS = 5.0
HEALTH_SECONDS = 40.0
SETTLE_SECONDS = 15.0


@dataclass(frozen=True)
class ActorNeeds:
    """CPUs and GPUs that one actor takes."""

    cpus: int
    gpus: int = 0

    def fit(self, resources: Mapping[str, float]) -> int:
        """Return how many actors fit on a machine, or a cluster, with these resources."""
        n = int(resources.get("CPU", 0.0) + 1e-6) // self.cpus
        return min(n, int(resources.get("GPU", 0.0) + 1e-6) // self.gpus) if self.gpus else n

    def __str__(self) -> str:
        text = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        if not self.gpus:
            return text
        return f"{text} and {self.gpus} GPU{'s' if self.gpus > 1 else ''}"


def import_ray() -> Any:
    """Return the package Ray; its usage reports are off unless the environment sets them.

    Raises
    ------
    InputError
        If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"--runner ray: expected {failed_import('ray', error)}. Run: {install_extra('ray')}"
        ) from error
    return ray


@contextmanager
def connected(crew: Crew, threads: int) -> Iterator[Any]:
    """Yield Ray connected to a cluster; a cluster started here stops at the end of the block.

    A cluster that this process is connected to already is used as it is.

    Raises
    ------
    InputError
        If the cluster cannot be reached or started.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = crew.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        with _started(ray, crew.workers * threads):
            yield ray
        return
    _require_reachable(address)
    _init(ray, address, address=address)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _started(ray: Any, cpus: int) -> Iterator[None]:
    """Start a small cluster on this machine, without dashboard or terminal logs."""
    place = tempfile.mkdtemp(prefix="sonde-ray-")
    try:
        _init(
            ray,
            "this machine",
            address="local",
            num_cpus=min(n_cores(), cpus) or n_cores(),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _temp_dir=place,
        )
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _init(ray: Any, where: str, **options: Any) -> None:
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:300]
        advice = (
            "Check --address, and that Ray and Python have the same versions on all machines."
            if "num_cpus" not in options
            else "Check the memory, and that the temporary folder (TMPDIR) is writable and has a "
            "short path, or leave --runner out."
        )
        raise InputError(
            f"--runner ray: Ray at {where} could not be reached or started: {reason}. {advice}"
        ) from error


def _require_reachable(address: str) -> None:
    """Raise if no Ray answers at an address, since Ray itself would retry for minutes.

    Raises
    ------
    InputError
        If no cluster answers there.
    """
    if "://" in address:
        raise InputError(
            f"--address: expected host:port of a cluster's head, or auto, got {address!r}. Run "
            "sonde on a machine of the cluster."
        )
    host, colon, port = address.rpartition(":")
    if address != "auto" and not (colon and host and port.isdigit()):
        raise InputError(f"--address: expected host:port or auto, got {address!r}.")
    if address != "auto":
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--address: nothing answers at {address} ({error}). Start Ray there (ray start "
                "--head), or leave --address out to run on this machine."
            ) from error
    words = [] if address == "auto" else ["--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=HEALTH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is not None and b"InvalidAuthToken" in done.stderr:
        raise InputError(
            f"--address: the Ray cluster at {address} asks for a token. Set RAY_AUTH_MODE=token, "
            "and set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that the cluster was "
            "started with."
        )
    if done is None or done.returncode:
        raise InputError(
            f"--address: no Ray cluster answers at {address}. Start one (ray start --head), or "
            "leave --address out to run on this machine."
        )


def n_actors(ray: Any, needs: ActorNeeds, asked: int) -> int:
    """Return the number of actors to start: ``asked``, or as many as fit if it is 0.

    Raises
    ------
    InputError
        If the cluster has no room for them, even after a wait of 15 s for ending work.
    """
    nodes = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
    check_room(nodes, needs, asked)
    until = time.monotonic() + SETTLE_SECONDS
    while needs.fit(free := ray.available_resources()) < max(1, asked):
        if time.monotonic() > until:
            raise InputError(
                f"--runner ray: expected {plural(max(1, asked), 'worker')} of {needs} each to fit, "
                f"but the cluster has only {_shown(free)} free at the moment. Wait, or take "
                "fewer --workers."
            )
        time.sleep(0.1)
    return asked or needs.fit(free)


def check_room(nodes: Sequence[Mapping[str, float]], needs: ActorNeeds, asked: int) -> None:
    """Raise if the machines of a cluster are too few or too small for a plan.

    Raises
    ------
    InputError
        With what is needed and what there is.
    """
    room = sum(needs.fit(resources) for resources in nodes)
    if room >= max(1, asked):
        return
    total = {k: sum(r.get(k, 0.0) for r in nodes) for k in ("CPU", "GPU")}
    kind = ""
    if needs.gpus and not total["GPU"]:
        kind = " The model is on a GPU, but no machine of the cluster has a GPU: use --device cpu."
    raise InputError(
        f"--runner ray: {max(1, asked)} worker{'s' if asked > 1 else ''} that "
        f"need{'' if asked > 1 else 's'} {needs} each cannot start: the cluster has "
        f"{_shown(total)} on {len(nodes)} machine{'s' if len(nodes) != 1 else ''}, enough for "
        f"{room}.{kind} Take fewer --workers or --threads."
    )


def _shown(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0.0):g} CPU and {resources.get('GPU', 0.0):g} GPU"


def state_of(ray: Any) -> str:
    """Return a short description of a cluster's machines, for errors."""
    texts = []
    for node in ray.nodes():
        state = "alive" if node.get("Alive") else "gone"
        texts.append(
            f"{node.get('NodeManagerAddress')}: {state}, {_shown(node.get('Resources', {}))}"
        )
    return "; ".join(texts)
