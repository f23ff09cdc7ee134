"""The figure on the card of the shipped language model, by a part of the files it never saw."""

import math
import re
import sysconfig
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tools.train_zoo import is_test, stdlib_files

import sonde

CONTEXT, SHARE = 256, 24


def pieces() -> dict[str, list[bytes]]:
    """Return one piece in 24 of every held-out file, by a hash of its place."""
    found: dict[str, list[bytes]] = {}
    for path in filter(is_test, stdlib_files()):
        content = path.read_bytes()
        name = path.relative_to(Path(sysconfig.get_paths()["stdlib"])).as_posix()
        for start in range(0, len(content), CONTEXT):
            if blake2b(f"{name}|{start}".encode(), digest_size=1).digest()[0] % SHARE == 0:
                found.setdefault(name, []).append(content[start : start + CONTEXT])
    return found


@pytest.mark.slow
@pytest.mark.truth("log_softmax, one piece at a time")
def test_the_card_tells_the_bits_per_byte():
    card = (files("sonde.data") / "models" / "stdlib" / "README.md").read_text()
    said = float(re.search(r"([\d.]+) bits per byte", card)[1])  # type: ignore[index]
    model = sonde.load("sonde:stdlib").module.eval()
    nats, count = [], []
    for own in pieces().values():
        total = n = 0.0
        for piece in own:
            ids = torch.tensor([list(piece)])
            with torch.no_grad():
                log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
            total -= float(log_p[:-1].gather(1, ids[0, 1:, None]).sum())
            n += len(piece) - 1
        nats.append(total)
        count.append(n)
    spent, n_bytes = torch.tensor(nats), torch.tensor(count)
    rate = spent.sum() / n_bytes.sum()
    error = ((spent - rate * n_bytes) ** 2).sum().sqrt() / n_bytes.sum()
    found, error = float(rate) / math.log(2), float(error) / math.log(2)
    assert n_bytes.sum() > 20_000
    assert error < 0.05
    assert abs(found - said) < 3 * error
    assert max(found, said) <= 1.5
