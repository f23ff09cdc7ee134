import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import sonde
from scan._zoo import FAMILIES, Items, digit_net, digits, quiet
from sonde.report import Report

pytestmark = pytest.mark.slow

SEED = 251
HALVES = 6
BLOCKS = ("findings", "checks", "sites")


@cache
def items() -> tuple[dict[str, Any], ...]:
    """Return 600 digits with a fault or two in them, so that there is something to agree on."""
    x, label = digits()
    draw = np.random.default_rng(SEED)
    order = draw.permutation(len(x))[:600]
    chosen = [{"x": x[i], "label": int(label[i]), "id": f"d{i}"} for i in order]
    for item in chosen[:40]:
        item["label"] = (item["label"] + 3) % 10
    return (*chosen, *({**item, "id": f"again {item['id']}"} for item in chosen[40:60]))


def net(family: str = "relu-mlp") -> torch.nn.Module:
    return digit_net(family, SEED, trained=True)[0]


def scanned(rows: Any = None, family: str = "relu-mlp", **options: Any) -> Report:
    data: Items = list(items() if rows is None else rows)
    return sonde.scan(net(family), data, settings=quiet(), **options)


def said(report: Report) -> set[tuple[str, str]]:
    return {(f["code"], f["level"]) for f in report.findings}


def loud(report: Report) -> frozenset[tuple[str, str]]:
    return frozenset(s for s in said(report) if s[1] != "note")


@cache
def reference() -> Report:
    return scanned()


def test_there_is_something_to_agree_on() -> None:
    assert {code for code, _ in said(reference())} >= {"SND034", "SND041"}


def test_the_same_scan_twice_gives_the_same_bytes() -> None:
    again = scanned().json()
    for block in BLOCKS:
        assert json.dumps(again[block]).encode() == json.dumps(reference().json()[block]).encode()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_repeats_itself(family: str) -> None:
    one, two = (scanned(items()[:200], family).json() for _ in range(2))
    assert [json.dumps(one[b]) for b in BLOCKS] == [json.dumps(two[b]) for b in BLOCKS]


@pytest.mark.parametrize("batch_size", [7, 256])
def test_other_batches_say_the_same(batch_size: int) -> None:
    assert said(scanned(batch_size=batch_size)) == said(reference())


def test_another_order_of_the_file_says_the_same() -> None:
    order = np.random.default_rng(0).permutation(len(items()))
    assert said(scanned([items()[i] for i in order])) == said(reference())


@pytest.mark.parametrize("family", ["relu-mlp", "residual-cnn"])
def test_random_halves_agree_on_errors_and_warnings(family: str) -> None:
    x, label = digits()
    found = []
    for seed in range(HALVES // 2):
        order = np.random.default_rng([SEED, seed]).permutation(len(x))[:1_074]
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            rows = [{"x": x[i], "label": int(label[i])} for i in half]
            found.append(loud(scanned(rows, family)))
    assert len(found) == HALVES
    most = max(set(found), key=found.count)
    assert found.count(most) >= HALVES - 1, found
