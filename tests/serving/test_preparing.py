"""Requests that arrive together: one call prepares them, each gets its own answer or refusal."""

import asyncio
import json

import pytest
from benchmarks.serving_application import asking

from serving_case import run_apart
from sonde.serving import app
from sonde.serving.limits import Limits
from sonde.serving.preparing import Preparing


@pytest.mark.truth("the number of calls; the rows of each request")
def test_requests_of_one_turn_share_a_call():
    calls = []

    def prepare(rows, keys, callers):
        calls.append(len(rows))
        if "broken" in rows:
            raise ValueError("broken")
        return [*zip(rows, keys, callers, strict=True)]

    async def scenario():
        preparing = Preparing(prepare)
        requests = [["a"], ["b", "c"], [], ["d"]]
        each = [preparing.items(rows, [b"k"] * len(rows), rows) for rows in requests]
        items = await asyncio.gather(*each)
        failed = [preparing.items(rows, rows, rows) for rows in (["broken"], ["e"])]
        return requests, items, await asyncio.gather(*failed, return_exceptions=True)

    requests, items, errors = run_apart(scenario())
    assert items == [[(row, b"k", row) for row in rows] for rows in requests]
    assert calls == [4, 2]
    assert [str(error) for error in errors] == ["broken"] * 2


@pytest.mark.slow
@pytest.mark.truth("the answers to each request alone")
def test_a_refused_text_leaves_the_requests_beside_it_alone():
    bodies = [["ab cd"], ["ab", "too long", "ba"], ["ab cde"], ["ba"]]

    async def scenario():
        application = app("sonde:stdlib", limits=Limits(tokens=5))  # a token is a byte
        async with application.router.lifespan_context(application):
            await application.state.service.loaded()
            ask = asking(application)
            sent = [json.dumps({"inputs": body}).encode() for body in bodies]
            alone = [await ask(one) for one in sent]
            return alone, await asyncio.gather(*map(ask, sent))

    def content(outcomes):
        return [
            (code, [(a.get("answer"), a.get("error")) for a in body["answers"]])
            if code == 200
            else (code, body["error"])
            for code, body in outcomes
        ]

    alone, together = run_apart(scenario())
    assert content(together) == content(alone)
    assert [code for code, _ in together] == [200, 200, 413, 200]
    refused = together[1][1]["answers"][1]["error"]
    assert refused.startswith("Input 1: Expected a text of at most 5 tokens."), refused
