"""Debiased CKA of all pairs of layers against other libraries."""

from benchmarks.against import seconds_note
from benchmarks.peers import UNMEASURED, Ask, in_peer
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size

PEERS = ("pytorch-cka", "torch-cka")
RIGHT = 1e-3


def layer_cka_rows(size: Size) -> list[Row]:
    """Time, memory, and answers on nearly constant layers."""
    count, width, n = size.pick((20, 512, 2_000), (3, 16, 64))
    rows = []
    for peer in PEERS:
        try:
            ask = in_peer("cka_runner", size.offline, peer, width=width, n=n)
            rows += _against(peer, ask, count, width, n, size)
        except UNMEASURED as error:
            rows.append(not_measured("cka", f"CKA of all layer pairs against {peer}", str(error)))
    return rows


def _against(peer: str, ask: Ask, count: int, width: int, n: int, size: Size) -> list[Row]:
    found = ask("times", peer=peer, count=count, rounds=size.rounds)
    mine = ask("memory", arm="sonde", count=count)
    theirs = ask("memory", arm=peer, count=count)
    said = ask("answers", peer=peer)
    name = f"CKA, {count} x {count} layers of {width}, {n} rows, against {found['version']}"
    speed = f"{seconds_note(found)}, matrices differ by {found['apart']:.1e}"
    room = f"{mine:.0f} MiB against {theirs:.0f} MiB beyond the layers"
    words = f"truth {said['truth']:.6f}; ours {said['ours']}; theirs {said['theirs']}"
    time = (found["median"], "x", 1.0, found["spread"], found["rounds"], speed)
    return [
        Row("cka", f"{name}: time", *time),
        Row("cka", f"{name}: memory", mine / max(theirs, 1e-9), budget=1.0, note=room),
        Row("cka", f"{name}: error, nearly constant", said["error"], "CKA", RIGHT, note=words),
    ]
