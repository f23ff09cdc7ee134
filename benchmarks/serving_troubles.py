"""What operators met, counted: mixed-up names, long texts, a dead feed, bursts, callers.

Every row has an application of its own in this process, with a probe of the traffic that is usual
there.
"""

import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rows import Row
from benchmarks.serving import probe_of
from benchmarks.serving_application import Ask, asking, together
from benchmarks.serving_models import N_CLASSES, TINY_TEXT, net, rows, texts, write_text_model
from benchmarks.size import Size
from sonde.serving import app
from sonde.serving.still_inputs import RUN

NAME, WIDTH = "serve-promise", 16
CONTEXT = 128
"""Tokens that the text model reads."""
CALLERS = 10


async def trouble_rows(size: Size) -> list[Row]:
    """Return a row for each trouble."""
    n = size.pick(2000, 100)
    probe = probe_of(WIDTH, size.pick(2000, 200))
    dead, repeated, burst, named = (
        await _dead_feed(probe, n),
        await _repeated(probe, n),
        await _burst(probe, n, is_named=False),
        await _burst(probe, n, is_named=True),
    )
    return [
        Row(NAME, f"{n:,} answers under --classes: another name than the model's output has",
            await _wrong_names(probe, n), "answers", 0),
        Row(NAME, f"{n:,} texts, half of them longer than the model reads: cut without a word, or "
            "whole and called cut", await _wrong_cuts(n), "answers", 0),
        Row(NAME, f"dead feed: inputs until it is told, after {n:,} usual ones", dead, "inputs",
            RUN),
        Row(NAME, f"{n:,} usual inputs, each asked five times in a row: changes told", repeated,
            "changes", 0),
        Row(NAME, f"burst of {n // 4:,} like inputs of one of {CALLERS} callers, named in "
            "X-Client: changes told", named, "changes", 0),
        Row(NAME, "the same burst without X-Client: changes told", burst, "changes"),
    ]  # fmt: skip


@asynccontextmanager
async def _served(model: Any, probe: Any = None, **options: Any) -> AsyncIterator[Any]:
    """Run an application in this process."""
    application = app(model, probe, **options)
    async with application.router.lifespan_context(application):
        await application.state.service.loaded()
        yield application


async def _wrong_names(probe: Any, n: int) -> int:
    """Return how many answers have a name that is not that of the model's largest output."""
    names = [f"n{(7 * i) % N_CLASSES}" for i in range(N_CLASSES)]  # in no alphabetical order
    given = rows(n, 20)
    with torch.no_grad():
        wanted = net(WIDTH)(torch.tensor(given)).argmax(1).tolist()
    async with _served(net(WIDTH), probe, classes=",".join(names)) as application:
        answers = await together(asking(application), given)
    return sum(one["answer"] != names[i] for one, i in zip(answers, wanted, strict=True))


async def _wrong_cuts(n: int) -> int:
    """Return how many texts were cut and not called so, or called so and not cut."""
    given = texts(n, 21, TINY_TEXT)
    given = [text if i % 2 else " ".join([text] * 8) for i, text in enumerate(given)]
    with tempfile.TemporaryDirectory() as folder:
        write_text_model(Path(folder), TINY_TEXT)
        async with _served(folder) as application:
            answers = await together(asking(application), given)
    n_words = [len(text.split()) for text in given]
    return sum(
        one.get("cut", False) != (words + 2 > CONTEXT)
        or (words + 2 > CONTEXT and one["tokens_read"] != CONTEXT)
        for one, words in zip(answers, n_words, strict=True)
    )


async def _dead_feed(probe: Any, n: int) -> float:
    """Return how many inputs of zeros it takes to tell that they are all alike."""
    async with _served(net(WIDTH), probe) as application:
        ask = asking(application)
        await together(ask, rows(n, 22))
        service = application.state.service
        service._watcher.submit(lambda: None).result()
        first = service.changes.n
        for _ in range(2 * RUN):
            await ask(json.dumps({"inputs": [[0.0] * len(rows(1, 0)[0])]}).encode())
        service._watcher.submit(lambda: None).result()
        told = [alarm.told for alarm in service.changes.alarms if alarm.told >= first]
        return told[0] - first + 1.0 if told else float("inf")


async def _repeated(probe: Any, n: int) -> int:
    """Return the changes that are told of usual inputs, each asked five times in a row."""
    async with _served(net(WIDTH), probe) as application:
        return await _changes_of(application, [one for one in rows(n // 5, 23) for _ in range(5)])


async def _burst(probe: Any, n: int, *, is_named: bool) -> int:
    """Return the changes that are told while one caller asks far more than usual."""
    rng = np.random.default_rng(24)
    own = rows(CALLERS, 24)  # inputs of a caller lie around its own place
    callers = rng.integers(CALLERS, size=n + n // 4)
    callers[n:][rng.random(n // 4) < 0.9] = 0
    noise = rows(len(callers), 25)
    given = [
        (0.7 * np.asarray(own[c]) + 0.7 * np.asarray(x)).tolist()
        for c, x in zip(callers, noise, strict=True)
    ]
    async with _served(net(WIDTH), probe) as application:
        asks = [asking(application, client=f"caller {c}" * is_named) for c in range(CALLERS)]
        return await _changes_of(application, given, [asks[c] for c in callers.tolist()])


async def _changes_of(
    application: Any, given: Sequence[Any], asks: Sequence[Ask] | None = None
) -> int:
    """Ask inputs one after another; return the changes of the traffic that were told."""
    each = asks or [asking(application)] * len(given)
    for ask, row in zip(each, given, strict=True):
        status, _ = await ask(json.dumps({"inputs": [row]}).encode())
        assert status == 200
    service = application.state.service
    service._watcher.submit(lambda: None).result()
    return len(service.changes.alarms)
