"""``sonde serve``: a model and its detectors behind HTTP, with monitoring."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.cli.options import (
    DataReading,
    DeviceWord,
    DtypeWord,
    EngineWord,
    LongWord,
    ModelWord,
    Printing,
    TrustFlag,
    named,
)
from sonde.core.errors import InputError, failed_import
from sonde.core.wording import install_extra

if TYPE_CHECKING:
    from sonde.serving.running import Settings


@dataclass(frozen=True)
class Serve:
    """Serve a model over HTTP. Each answer says whether its input is in distribution.

    With a calibrated PROBE, the answer to an input contains its p-value for each detector and site,
    an alarm at the stated rate, and the site with the smallest p-value. The numbers equal those of
    `sonde score` to rounding; with --batch-invariant they equal those of
    `sonde score --batch-invariant`, bit for bit, whatever other requests run at the same time.

    Only this machine reaches the server, unless --host and --token-file say otherwise.

    Example: sonde serve sonde:digits probe.sonde --port 8000

    Then: curl -F picture=@seven.png http://127.0.0.1:8000/predict

    Texts: curl -H 'Content-Type: application/json' -d '{"inputs": ["a text"]}'
    http://127.0.0.1:8000/predict

    A language model answers the OpenAI protocol too: /v1/completions, /v1/chat/completions,
    /v1/models, with the verdicts in the field `sonde`. With --engine vllm it answers many requests
    at once.

    GET / is the dashboard, /metrics is for Prometheus, /openapi.json describes every address.
    With --log the statistics of the traffic are ordinary state files:
    sonde drift monday.sonde tuesday.sonde
    """

    model: ModelWord
    probe: Annotated[
        tyro.conf.Positional[Path | None],
        named("PROBE", "a file that sonde fit or sonde calibrate wrote for this model"),
    ] = None
    port: Annotated[int, tyro.conf.arg(help="port; 0 takes a free one")] = 8000
    host: Annotated[
        str,
        tyro.conf.arg(help="address to listen at; 0.0.0.0 means all addresses, and needs a token"),
    ] = "127.0.0.1"
    token_file: Annotated[
        Path | None,
        named(
            "FILE",
            "file whose first line is the token that clients send as 'Authorization: Bearer TOKEN'",
        ),
    ] = None
    alarm: Annotated[
        float, tyro.conf.arg(aliases=["--alpha"], help="false-alarm rate of the verdicts")
    ] = 0.05
    log: Annotated[
        Path | None, named("FOLDER", "folder for statistics of the traffic (inputs are not stored)")
    ] = None
    commit: Annotated[
        float,
        named(
            "SECONDS",
            "seconds between two commits: a crash loses at most this much traffic (default: 10)",
        ),
    ] = 10.0
    period: Annotated[float, named("SECONDS", "seconds of traffic in one file (default: 3600)")] = (
        3600.0
    )
    period_inputs: Annotated[
        int | None, named("N", "largest number of inputs in one file of traffic")
    ] = None
    calibrate: Annotated[
        Path | None,
        named("FILE", "a calibration of PROBE that is loaded again whenever the file changes"),
    ] = None
    replicas: Annotated[int, tyro.conf.arg(help="processes, or replicas on Ray")] = 1
    runner: Annotated[
        Literal["local", "ray"], tyro.conf.arg(help="processes of this machine, or Ray Serve")
    ] = "local"
    address: Annotated[
        str | None,
        named(
            "HOST:PORT",
            "address of a running Ray cluster, or auto; by default a local cluster is started",
        ),
    ] = None
    shared: Annotated[
        bool,
        tyro.conf.arg(
            help="the folder of --log is shared with other servers of this model: exchange "
            "feedback, metrics and changes with them"
        ),
    ] = False
    threads: Annotated[int | None, named("N", "threads of each replica")] = None
    batch: Annotated[int, tyro.conf.arg(help="largest batch of one forward pass")] = 32
    batch_invariant: Annotated[
        bool,
        tyro.conf.arg(
            help="give each score the same bits in any batch, as `sonde score --batch-invariant` "
            "does; texts of different lengths then cannot share a forward pass"
        ),
    ] = False
    wait: Annotated[
        float, named("SECONDS", "time an input waits for other inputs to fill its batch")
    ] = 0.0
    queue: Annotated[
        int, tyro.conf.arg(help="largest number of waiting inputs; further requests get status 429")
    ] = 1024
    connections: Annotated[
        int, tyro.conf.arg(help="largest number of open connections of a replica")
    ] = 512
    stall: Annotated[
        float,
        named(
            "SECONDS",
            "time of one forward pass after which /v2/health/live answers 503 (default: 120)",
        ),
    ] = 120.0
    max_body: Annotated[
        str, named("SIZE", "largest size of a request, e.g. 8MiB (default: 8MiB)")
    ] = "8MiB"
    max_pixels: Annotated[int, tyro.conf.arg(help="largest number of pixels of one image")] = (
        16_000_000
    )
    keep_inputs: Annotated[
        int, named("N", "show the inputs of the last N alarms on the dashboard (default: 0)")
    ] = 0
    client_field: Annotated[
        str | None,
        named(
            "NAME",
            "field of an input that names its caller (default: the header X-Client): a burst of "
            "one caller is no change of the traffic",
        ),
    ] = None
    on_alarm: Annotated[
        Literal["header", "refuse", "log"],
        tyro.conf.arg(
            help="what an alarm does in answers of /v1: say it in headers, withhold the answer, or "
            "write it to the log too"
        ),
    ] = "header"
    engine: EngineWord = "transformers"
    device: DeviceWord = "auto"
    dtype: DtypeWord = "auto"
    trust_remote_code: TrustFlag = False
    long: LongWord = "auto"
    generate: Annotated[
        str | None,
        named(
            "NAME=VALUE,...",
            "answer with the text that continues a prompt: max_new_tokens=64 (with a probe: its "
            "own settings)",
        ),
    ] = None
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Serve until the process receives a signal."""
        try:
            from sonde.serving.running import check, run
        except ImportError as error:
            raise InputError(
                f"serve: expected {failed_import(error.name or 'of the server', error)}. Run: "
                f"{install_extra('serve')}"
            ) from None
        if self.shared and self.log is None:
            raise InputError("--shared: expected --log with it, a folder that all servers see.")
        settings = self._settings()
        check(settings)
        if self.runner == "ray":
            from sonde.serving.replicas import run_on_ray

            return run_on_ray(settings, self.address)
        return run(settings)

    def _reading_options(self) -> dict[str, Any]:
        options = self.reading.data_options() | {"long": self.long}
        if self.generate is not None:
            from sonde.tap.generating.settings import parse_settings

            parse_settings(self.generate)
            options["generate"] = self.generate
        return options

    def _settings(self) -> "Settings":
        from sonde.cli.options import parse_bytes
        from sonde.serving.limits import Limits
        from sonde.serving.running import Settings
        from sonde.serving.traffic import Schedule

        def text(path: Path | None) -> str | None:
            return None if path is None else str(path.absolute())

        return Settings(
            model=self.model,
            probe=text(self.probe),
            host=self.host,
            port=self.port,
            alpha=self.alarm,
            token_file=text(self.token_file),
            log=text(self.log),
            calibrate=text(self.calibrate),
            replicas=self.replicas,
            threads=self.threads,
            keep_inputs=self.keep_inputs,
            stall=self.stall,
            batch_invariant=self.batch_invariant,
            client_field=self.client_field,
            shared=text(self.log) if self.shared else None,
            quiet=self.printing.quiet,
            on_alarm=self.on_alarm,
            engine=self.engine,
            limits=Limits(
                body_bytes=parse_bytes(self.max_body),
                pixels=self.max_pixels,
                batch=self.batch,
                wait_seconds=self.wait,
                queue=self.queue,
                connections=self.connections,
                tokens=self.reading.max_length,
            ),
            schedule=Schedule(self.commit, self.period, self.period_inputs),
            model_options={
                "device": self.device,
                "dtype": self.dtype,
                "trust_remote_code": self.trust_remote_code,
            },
            options=self._reading_options(),
        )
