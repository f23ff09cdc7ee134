"""Damaged and forged state files: a StateError each time, no other exception, little memory."""

import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sonde.core.errors import StateError
from sonde.files._layout import HEADER_LIMIT, MOST_TENSORS
from sonde.files.state_file import check_state, read_header, read_state
from state_case import Parts, Rich, forged, framed, good

Change = Callable[[Parts], object]


def corpus(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a name and the bytes of every bad file."""
    yield from raw(content)
    yield from tables(content)
    yield from envelopes(content)
    for name, change in fields().items():
        yield name, forged(content, change)


def raw(content: bytes) -> Iterator[tuple[str, bytes]]:
    length = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + length].decode()
    yield "empty", b""
    yield "seven bytes", content[:7]
    yield "only a length", content[:8]
    yield "length zero", bytes(8) + content[8:]
    yield "length beyond the file", len(content).to_bytes(8, "little") + content[8:]
    yield "length 2^64 - 1", b"\xff" * 8 + content[8:]
    yield "length above the limit", framed(" " * (HEADER_LIMIT + 8))
    yield "cut in the header", content[: 8 + length // 2]
    yield "one byte short", content[:-1]
    yield "one byte long", content + b"\0"
    yield "not ASCII", content[:20] + b"\xc3\xa9" + content[22:]
    yield "a pickle", b"\x80\x04\x95" + content[3:]
    yield "no metadata", framed(head.replace("__metadata__", "__metadatb__"), content[8 + length :])
    yield "an empty header", framed("{}")
    yield "metadata no text", framed('{"__metadata__":{"sonde":{}}}')
    yield "an open text", framed('{"__metadata__":{"sonde":"' + "a" * 100)
    yield "a bad escape", framed('{"__metadata__":{"sonde":"\\q"}}')
    yield "a second key", content.replace(b'"sonde":"', b'"sondf":"", "sonde":"', 1)
    yield "a blank before the header", framed(" " + head, content[8 + length :])
    yield "more padding", framed(head + " " * 8, content[8 + length :])


def tables(content: bytes) -> Iterator[tuple[str, bytes]]:
    def swap(old: str, new: str) -> bytes:
        parts = Parts.of(content)
        assert old in parts.table
        parts.table = parts.table.replace(old, new, 1)
        return parts.hashed().join()

    parts = Parts.of(content)
    first = parts.table[: parts.table.index("}") + 1]
    begin, end = json.loads("{" + first[1:] + "}")["t0"]["data_offsets"]
    yield "unknown type", swap('"F64"', '"F65"')
    yield "negative offset", swap(f"[{begin},{end}]", f"[-8,{end}]")
    yield "offset shifted", swap(f"[{begin},{end}]", f"[{begin + 8},{end + 8}]")
    yield "offset beyond the end", swap(f"[{begin},{end}]", f"[{begin},{10**15}]")
    yield "offset with 30 digits", swap(f"[{begin},{end}]", f"[{begin},{10**30}]")
    yield "offset with a point", swap(f"[{begin},{end}]", f"[{begin}.0,{end}]")
    yield "another name", swap('"t0"', '"t1"')
    yield "a padded name", swap('"t0"', '"t00"')
    yield "a path as a name", swap('"t0"', '"../../etc/passwd"')
    yield "the first twice", swap(first, first + first)
    yield "the first lacking", swap(first, "")
    yield "a shape of another size", swap('"shape":[3]', '"shape":[4]')
    yield "a shape whose product overflows", swap('"shape":[3]', f'"shape":[{2**32},{2**32},3]')
    yield "an empty tensor of absurd length", swap('"shape":[0]', f'"shape":[0,{10**12}]')
    yield "seventeen axes", swap('"shape":[3]', '"shape":[' + "1," * 16 + "3]")
    yield "a blank in the table", swap('"shape":', '"shape": ')
    yield "keys in another order", swap('"shape":[3],"data', '"data":[3],"data')
    many = "".join(
        f',"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        for i in range(MOST_TENSORS + 1)
    )
    yield "too many tensors", framed(f'{{"__metadata__":{{"sonde":"{{}}"}}{many}}}')


def envelopes(content: bytes) -> Iterator[tuple[str, bytes]]:
    def with_inner(change: Callable[[str], str]) -> bytes:
        parts = Parts.of(content)
        inner = json.dumps(parts.envelope, sort_keys=True, separators=(",", ":"))
        changed = change(inner)
        assert changed != inner
        return parts.join(changed)

    yield "no JSON inside", with_inner(lambda t: t[1:])
    yield "a list inside", with_inner(lambda t: f"[{t}]")
    yield "blanks inside", with_inner(lambda t: t.replace(":", ": ", 1))
    yield "NaN", with_inner(lambda t: t.replace('"version":1', '"version":NaN'))
    yield "1e999", with_inner(lambda t: t.replace('"units":[[0,3]]', '"units":1e999'))
    yield "5,000 digits", with_inner(lambda t: t.replace("[[0,3]]", "1" + "0" * 5000))
    yield "a key twice", with_inner(lambda t: t.replace('"plan":"p"', '"plan":"p","plan":"p"'))
    yield (
        "keys unsorted",
        with_inner(
            lambda t: t.replace('"plan":"p",', "").replace(
                '"units":[[0,3]]', '"units":[[0,3]],"plan":"p"'
            )
        ),
    )
    yield (
        "nested 100,000 deep",
        with_inner(lambda t: t.replace("[[0,3]]", "[" * 10**5 + "]" * 10**5)),
    )
    yield "nested 500 deep", with_inner(lambda t: t.replace("[[0,3]]", "[" * 500 + "]" * 500))
    yield "a flat million", with_inner(lambda t: t.replace("[[0,3]]", "[" + "[]," * 10**6 + "[]]"))

    def of(change: Change) -> bytes:
        return forged(content, change)

    yield "another format", of(lambda p: p.envelope.update(format="sonde-fake"))
    yield "a later version", of(lambda p: p.envelope.update(version=2))
    yield "the version as text", of(lambda p: p.envelope.update(version="1"))
    yield "the version as truth", of(lambda p: p.envelope.update(version=True))
    yield "no header", of(lambda p: p.envelope.pop("header"))
    yield "no states", of(lambda p: p.envelope.pop("states"))
    yield "an unknown key", of(lambda p: p.envelope.update(extra=1))
    yield "states as a list", of(lambda p: p.envelope.update(states=[]))
    yield "the header as a list", of(lambda p: p.envelope.update(header=[]))
    wrong = Parts.of(content)
    wrong.envelope["hash"] = "0" * 64
    yield "a wrong hash", wrong.join()
    wrong.envelope["hash"] = None
    yield "no hash", wrong.join()
    wrong.envelope["hash"] = "../" * 30
    yield "a path as hash", wrong.join()


def fields() -> dict[str, Change]:
    """Return forgeries whose checksum is right and whose fields are wrong."""

    def put(name: str, value: object) -> Change:
        return lambda p: p.envelope["states"]["a"].update({name: value})

    def payload(p: Parts) -> None:
        flags = int(p.envelope["states"]["a"]["flags"][1:])
        entry = json.loads("{" + p.table[1:] + "}")[f"t{flags}"]
        at = entry["data_offsets"][0]
        p.payload = p.payload[:at] + b"\x02" + p.payload[at + 1 :]

    return {
        "a state unknown": lambda p: p.envelope["states"].update(c=None),
        "a state lacking": lambda p: p.envelope["states"].pop("b"),
        "a state as number": lambda p: p.envelope["states"].update(a=3),
        "a field lacking": lambda p: p.envelope["states"]["a"].pop("n"),
        "a field unknown": put("class", "os.system"),
        "a tensor that is not there": put("mean", "t99"),
        "a tensor with another name": put("mean", "mean"),
        "a tensor with a long name": put("mean", "t" + "9" * 100_000),
        "a number as tensor": put("mean", 3),
        "null as tensor": put("mean", None),
        "a tensor as number": put("n", "t0"),
        "truth as number": put("n", True),
        "a float as integer": put("n", 7.0),
        "2^60 as a bare number": put("n", 1 << 60),
        "a small number in long form": put("seed", {"$int": "0x7"}),
        "a number of 10^5 digits": put("seed", {"$int": "0x" + "f" * 10**5}),
        "a float as bare number": put("rate", 0.5),
        "a float in another form": put("rate", {"$float": "0x1p0"}),
        "a float as a word": put("rate", {"$float": "one"}),
        "a quiet nan without bits": put("odd", {"$float": "nan"}),
        "a number that claims to be nan": put("odd", {"$float": "nan:3ff0000000000000"}),
        "text as bytes": put("raw", {"$str": "00"}),
        "bytes that are no digits": put("raw", {"$bytes": "zz"}),
        "bytes in capitals": put("raw", {"$bytes": "FF"}),
        "bare text": put("name", "name"),
        "an unknown tag": put("name", {"$eval": "1"}),
        "a literal outside": put("kind", {"$str": "all"}),
        "a value for None": put("nothing", 0),
        "a number as truth": put("sure", 1),
        "a tuple too long": put("pair", [1, {"$float": "0x1.0000000000000p+0"}, 3]),
        "a tuple too short": put("pair", []),
        "a tuple as number": put("pair", 1),
        "a float tensor for an integer one": put("maybe", "t1"),
        "a vector of another length": put("mean", "t2"),
        "a state in a state with other fields": put("inner", {"weight": "t0"}),
        "either as text": put("either", {"$str": "x"}),
        "truth values that are none": payload,
    }


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bad")
    content = good(place / "good.sonde")
    found: dict[str, Path] = {}
    for i, (name, bad) in enumerate(corpus(content)):
        assert bad != content, name
        found[name] = place / f"{i}.sonde"
        found[name].write_bytes(bad)
    return found


def test_the_good_file_is_good_and_its_forged_copy_too(tmp_path):
    content = good(tmp_path / "a.sonde")
    assert forged(content, lambda p: None) == content
    read_state(tmp_path / "a.sonde", {"a": Rich, "b": Rich})


@pytest.mark.slow
def test_every_bad_file_is_a_state_error(bad_files):
    assert len(bad_files) > 90
    accepted, wordy = [], []
    for name, path in bad_files.items():
        try:
            read_state(path, {"a": Rich, "b": Rich})
            accepted.append(name)
        except StateError as error:
            wordy += [name] if len(str(error)) > 2000 else []
    assert accepted == []
    assert wordy == []


@pytest.mark.slow
def test_the_head_alone_is_checked_as_strictly(bad_files, tmp_path):
    content = good(tmp_path / "a.sonde")
    names = [name for part in (raw, tables) for name, _ in part(content)]
    accepted = []
    for name in names:
        try:
            read_header(bad_files[name])
            accepted.append(name)
        except StateError:
            pass
    assert accepted == []


def flips(content: bytes, n: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(n):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        yield bytes(changed)


@pytest.mark.slow
def test_two_thousand_flipped_bytes_are_all_found(tmp_path):
    content, path = good(tmp_path / "a.sonde"), tmp_path / "b.sonde"
    for changed in flips(content, 2000, seed=5):
        path.write_bytes(changed)
        with pytest.raises(StateError):
            read_state(path, {"a": Rich, "b": Rich})


def test_every_third_byte_is_covered(tmp_path):
    content, path = good(tmp_path / "a.sonde"), tmp_path / "b.sonde"
    for i in range(0, len(content), 3):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(StateError):
            check_state(path)


def test_every_truncation_is_found(tmp_path):
    content, path = good(tmp_path / "a.sonde"), tmp_path / "b.sonde"
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(StateError):
            read_state(path, {"a": Rich, "b": Rich})


@pytest.mark.slow
@pytest.mark.truth("RLIMIT_AS of the operating system")
def test_no_bad_file_takes_a_hundred_megabytes(bad_files, tmp_path):
    pytest.importorskip("resource")
    content = good(tmp_path / "a.sonde")
    fat = tmp_path / "fat"
    fat.mkdir()
    for i, bad in enumerate(greedy(content)):
        (fat / f"{i}.sonde").write_bytes(bad)
    with (fat / "sparse.sonde").open("wb") as file:
        n = 512 << 20
        file.write(
            framed(
                json.dumps({"__metadata__": {"sonde": bare_envelope()}}, separators=(",", ":"))[:-1]
                + f',"t0":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}}}'
            )
        )
        file.truncate(file.tell() + n)
    paths = [*map(str, bad_files.values()), *map(str, sorted(fat.iterdir()))]
    program = textwrap.dedent(
        """
        import json, resource, sys
        from state_case import Rich
        from sonde.core.errors import StateError
        from sonde.files.state_file import read_state
        paths = json.load(sys.stdin)
        try:
            read_state(paths[0], {"a": Rich, "b": Rich})
        except StateError:
            pass
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
        for path in paths:
            try:
                read_state(path, {"a": Rich, "b": Rich})
            except StateError as error:
                continue
            sys.exit("accepted " + path)
        print("all refused", len(paths))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("all refused")


def bare_envelope() -> str:
    envelope = {"format": "sonde-state", "hash": "0" * 64, "header": {}, "states": {}, "version": 1}
    return json.dumps(envelope, separators=(",", ":"))


def greedy(content: bytes) -> Iterator[bytes]:
    """Yield files that try to take as much memory as the limits on the head allow."""
    parts = Parts.of(content)
    for filling in ("[]", "{}", "1234567", '"abcdefgh"', '{"ab":12345}', "[[[]]]", "1.5"):
        n = 130_000
        parts.envelope["header"] = {"x": "@"}
        inner = json.dumps(parts.envelope, sort_keys=True, separators=(",", ":"))
        yield parts.join(inner.replace('"@"', "[" + ",".join([filling] * n) + "]"))
    keys = ",".join(f'"{i:06d}":{i + 1000}' for i in range(195_000))
    yield parts.join(inner.replace('"@"', "{" + keys + "}"))
    yield parts.join(inner.replace('"@"', '"' + "x" * (7 << 20) + '"'))
    n = MOST_TENSORS - 1
    table = "".join(
        f',"t{i}":{{"dtype":"U8","shape":[1,0,1,1],"data_offsets":[0,0]}}' for i in range(n)
    )
    names = ",".join(f'"{i:05d}":"t{i}"' for i in range(n))
    yield framed(
        '{"__metadata__":{"sonde":'
        + json.dumps(inner.replace('"@"', "{" + names + "}"))
        + "}"
        + table
        + "}"
    )
