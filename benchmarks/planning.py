"""Plan one large job from estimates: 10^9 tokens at 32 sites of width 4,096, and its merges.

The net has sites of that width and almost no forward pass of its own, so that an estimate is what
sonde takes for hooks, statistics and files. The estimates of two numbers of texts give the seconds
of a token; the forward passes of a real model are added by its tokens in a second. Merges of
workers are measured in a folder, and in a bucket of moto's server on the loopback behind a proxy
that answers each request later by `--latency` seconds, as a service far away does.

    python -m benchmarks.planning --tokens-per-second 10000
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sonde
from benchmarks.merging import Case, measured_case
from sonde.core.plan import UNIT_SIZE
from sonde.core.wording import gib
from sonde.run.estimating.job_estimate import JobEstimate, duration

TOKENS, SITES, WIDTH, LENGTH = 10**9, 32, 4096, 50
SAMPLES = (128, 256)
"""Texts of the two estimates; each runs on at most an eighth of them."""
WORKERS = (1, 16, 1000)


class Gain(nn.Module):
    """A site: states times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        """Return the states."""
        return x * self.gain


@dataclass(frozen=True)
class Cost:
    """What a job costs, from the estimates of two numbers of texts.

    Parameters
    ----------
    small, large : JobEstimate
        Estimates of fewer and of more texts.
    length : int
        Tokens of a text.
    """

    small: JobEstimate
    large: JobEstimate
    length: int

    @property
    def seconds_of_a_token(self) -> float:
        """Seconds that each further token takes at all sites."""
        return self._slope(self.small.seconds, self.large.seconds)

    def disk_bytes(self, tokens: int) -> int:
        """Return the peak on disk for a number of tokens."""
        if self.large.job == "fit":  # of the commits that wait, not of the tokens
            return self.large.disk_bytes
        more = tokens - self.large.n_examples * self.length
        slope = self._slope(self.small.disk_bytes, self.large.disk_bytes)
        return round(self.large.disk_bytes + slope * more)

    def _slope(self, low: float, high: float) -> float:
        added = self.large.n_examples - self.small.n_examples
        return max(0.0, high - low) / (added * self.length)


def estimates(job: str, n: int, sites: int, width: int, length: int) -> JobEstimate:
    """Return the estimate of a job on a number of texts."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randn(n, length, width, generator=draw, dtype=torch.bfloat16)
    net = nn.Sequential(*(Gain(width) for _ in range(sites))).eval()
    reducer = "mean" if job == "read means" else "tokens"
    names = [str(i) for i in range(sites)]
    stream = sonde.read(net, texts, sites=names, reducer=reducer, batch_size=8)
    options: Any = {} if job.startswith("read") else {"methods": "covariance"}
    return sonde.estimate(job.split()[0], stream, clock=time.process_time, **options)


def plan_table(costs: dict[str, Cost], tokens: int, forward: float) -> list[str]:
    """Return the rows of the plan: hours on some numbers of workers, disk and memory."""
    heads = [f"{n:,} worker{'s' if n > 1 else ''}" for n in WORKERS]
    columns = ["job", "a token, µs", *heads, "on disk", "states in memory"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for job, cost in costs.items():
        own = cost.seconds_of_a_token
        times = [duration(tokens * (own + forward) / n) for n in WORKERS]
        sizes = [size(cost.disk_bytes(tokens)), size(cost.large.memory_bytes)]
        cells = [job, f"{1e6 * own:,.0f}", *times, *sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def size(n_bytes: int) -> str:
    """Return a number of bytes in MiB, GiB or TB."""
    return f"{n_bytes / 1e12:,.1f} TB" if n_bytes > 1e12 else gib(n_bytes)


def merge_cases(
    unit_seconds: float, sites: int, width: int, n_units: int, latency: float
) -> dict[str, list[Case]]:
    """Return the measured merges in a folder and in a bucket, by place."""
    from tests.object_storage import BUCKET, proxied, s3_server, settings

    def both(place: str) -> list[Case]:
        options: Any = {"place": place, "n_units": n_units}
        diag = measured_case("variances", unit_seconds, width, sites, sites, "diag", **options)
        options["turns"] = 1  # 128 MiB a site
        full = measured_case("covariances", unit_seconds, width, sites, 1, "full", **options)
        return [diag, full]

    cases = {"folder": both("")}
    with s3_server() as server, proxied(server) as proxy:
        for waits in (0.0, latency):
            proxy.fault = lambda method, path, n, waits=waits: waits or None
            os.environ.update(settings(proxy.address))
            cases[f"bucket, {1000 * waits:.0f} ms"] = both(f"s3://{BUCKET}")
    return cases


def merge_table(cases: dict[str, list[Case]]) -> list[str]:
    """Return the rows of the table of merges."""
    heads = [f"{n:,} worker{'s' if n > 1 else ''}" for n in WORKERS]
    columns = ["states", "place", "MiB", "commits", "commit, s", "merge, s", *heads]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for place, several in cases.items():
        for case in several:
            speeds = [f"{case.speed_up(n):,.0f}" for n in WORKERS]
            cells = [case.name, place, f"{case.size_bytes / 2**20:,.0f}"]
            cells += [f"{case.n_units >> case.level:,}", f"{case.put_seconds:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{case.merge_seconds:.2f}", *speeds]) + " |")
    return lines


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--tokens-per-second", type=float, default=10_000.0)
    parser.add_argument("--samples", type=int, nargs=2, default=SAMPLES, help="texts")
    parser.add_argument("--sites", type=int, default=SITES)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a text")
    parser.add_argument("--unit-seconds", type=float, help="print merges alone, for such units")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds for a request")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan and the merges."""
    typed = parsed(arguments)
    torch.set_num_threads(1)
    n_units = -(-typed.tokens // (typed.length * UNIT_SIZE))
    unit = typed.unit_seconds or planned_unit(typed)
    print(
        f"{n_units:,} units of {UNIT_SIZE} texts, {unit:,.0f} s each; times as fast as one worker"
    )
    print(flush=True)
    cases = merge_cases(unit, typed.sites, typed.width, n_units, typed.latency)
    print(*merge_table(cases), sep="\n")
    return 0


def planned_unit(typed: argparse.Namespace) -> float:
    """Print the plan and return the seconds of a unit of the fit."""
    shape = typed.sites, typed.width, typed.length
    costs: dict[str, Cost] = {}
    for job in ("read tokens", "read means", "fit covariance"):
        small, large = (estimates(job, n, *shape) for n in typed.samples)
        costs[job] = Cost(small, large, typed.length)
    forward = 1 / typed.tokens_per_second
    print(f"{typed.tokens:,} tokens in texts of {typed.length}, {typed.sites} sites of", end=" ")
    print(f"{typed.width:,}; forward passes alone: {duration(typed.tokens * forward)}\n")
    print(*plan_table(costs, typed.tokens, forward), "", sep="\n", flush=True)
    return UNIT_SIZE * typed.length * (costs["fit covariance"].seconds_of_a_token + forward)


if __name__ == "__main__":
    sys.exit(main())
