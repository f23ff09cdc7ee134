"""Several replicas on Ray Serve: the same application, by Ray's own scaling and restarts."""

import os
import signal
import threading
from typing import Any

from sonde.core.errors import InputError
from sonde.serving.running import Settings, made

READY_CHECK = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
"""Ray kills its HTTP proxy if three checks of this many seconds pass before it has started."""


def deployment(settings: Settings, **options: Any) -> Any:
    """Return the application for some settings, bound for ``ray.serve.run``.

    Parameters
    ----------
    settings : Settings
        ``replicas`` is the number of replicas, unless ``options`` hold ``autoscaling_config``.
    **options
        Those of ``ray.serve.deployment``, such as ``autoscaling_config`` or ``ray_actor_options``.

    Raises
    ------
    InputError
        If Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError:
        raise InputError(
            "serve: --runner ray needs Ray Serve, which is not installed. Install 'ray[serve]'."
        ) from None
    text = settings.text()

    def build() -> Any:
        return made(Settings.of(text))

    @serve.ingress(build)
    class SondeReplica:
        """The application in one replica."""

    scale = {} if "autoscaling_config" in options else {"num_replicas": settings.replicas}
    asked = {"name": "sonde", "max_ongoing_requests": settings.limits.queue, **scale, **options}
    made_of: Any = serve.deployment(SondeReplica, **asked)
    return made_of.bind()


def run_on_ray(settings: Settings, address: str | None) -> int:
    """Serve on Ray until the process receives a signal.

    Parameters
    ----------
    settings : Settings
    address : str or None
        A running cluster; None starts one on this machine.
    """
    import ray
    from ray import serve

    # Ray waits 15 s for its proxy by default, and a busy machine needs longer to import Ray. With
    # 20 s a check Ray waits the minute that it gives a proxy anyway.
    os.environ.setdefault(READY_CHECK, "20")
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ray ends at once; the first replica answers before all run, and a signal may come then.
        signal.signal(number, lambda *_: ended.set())
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(deployment(settings), name="sonde", route_prefix="/")
    ended.wait()
    serve.shutdown()
    ray.shutdown()
    return 0
