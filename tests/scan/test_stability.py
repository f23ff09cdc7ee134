import json
from functools import cache
from typing import Any

import numpy as np
import pytest

import sonde
from scan._zoo import SEEDS, Items, digit_net, digits, quiet
from sonde.report import Report

pytestmark = pytest.mark.slow

SEED = 251  # of the rows
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


def scanned(
    rows: Any = None, family: str = "relu-mlp", trained: bool = True, **options: Any
) -> Report:
    data: Items = list(items() if rows is None else rows)
    return sonde.scan(digit_net(family, SEEDS[0], trained)[0], data, settings=quiet(), **options)


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


@pytest.mark.parametrize("family", ["residual-cnn", "patch-net"])
def test_convolutions_and_attention_repeat_themselves(family: str) -> None:
    one, two = (scanned(items()[:200], family, trained=False).json() for _ in range(2))
    assert [json.dumps(one[b]) for b in BLOCKS] == [json.dumps(two[b]) for b in BLOCKS]


def test_other_batches_say_the_same() -> None:
    assert said(scanned(batch_size=7)) == said(reference())


def test_another_order_of_the_file_says_the_same() -> None:
    order = np.random.default_rng(0).permutation(len(items()))
    of_order = {("SND049", "warning")}  # the wrong labels are the file's first 40: gone when mixed
    assert said(scanned([items()[i] for i in order])) == said(reference()) - of_order
    assert of_order < said(reference())


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
