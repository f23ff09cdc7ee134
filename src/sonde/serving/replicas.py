"""Several replicas on Ray Serve: the same application, by Ray's own scaling and restarts."""

import os
import signal
import threading
from dataclasses import replace
from typing import Any

from sonde.core.errors import InputError, failed_import
from sonde.serving.running import Settings, made, say_serving, service_of, sharing

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
    except ImportError as error:
        raise InputError(
            f"serve: --runner ray needs {failed_import('ray', error)}. Run: pip install "
            "'ray[serve]'"
        ) from None
    text = (settings if settings.log is None else replace(settings, shared=settings.log)).text()

    def build() -> Any:
        return made(Settings.of(text))

    @serve.ingress(build)
    class SondeReplica:
        """The application in one replica."""

        def check_health(self) -> None:
            """Raise if a forward pass hangs, so that Ray restarts the replica."""
            service = service_of(self.app)  # type: ignore[attr-defined]  # of Ray's wrapper
            if service.is_stalled:
                raise RuntimeError(f"a forward pass runs for {service.stalled_for:.0f} s")

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
    with sharing(settings) as shared:
        serve.run(deployment(shared), name="sonde", route_prefix="/")
        say_serving(settings)
        ended.wait()
        serve.shutdown()
    ray.shutdown()
    return 0
