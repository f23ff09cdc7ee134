"""What is written about people, and whose rows a reader sees."""

import io
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import sonde
from models import cnn, gpt2, mlp
from sonde import Fitted, Stream, merge
from sonde.core import InputError, StateError
from sonde.detect import Mahalanobis
from sonde.run.passes.parts import StreamPart
from sonde.store import Cleared, Policy, Store, write_store

WIDTH = 4


def stored(folder, seed_of_b=1, n=90, grouped=False):
    """Rows of users a and b in turn, and every ninth of nobody; b's rows depend on the seed."""
    user = [None if i % 9 == 0 else "ab"[i % 2] for i in range(n)]
    rows = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))
    other = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed_of_b))
    theirs = torch.tensor([u == "b" for u in user])
    rows = torch.where(theirs[:, None], other, rows)
    ids = [f"{u}{i}" + (f"-{seed_of_b}" if u == "b" else "") for i, u in enumerate(user)]
    columns: Any = {"ids": ids} | ({"group": [f"g{name}" for name in ids]} if grouped else {})
    write_store(Stream.of({"0": rows}, **columns), folder, columns={"user": user}, unit_size=16)
    return Store(folder), rows, user


def fit(stream):
    return sonde.fit(Mahalanobis(shrinkage=0.1), stream, calibrate=0.3, progress=False)


@pytest.mark.truth("the visible rows alone, written in a store of their own")
def test_a_reader_sees_the_rows_of_the_clearance_and_those_of_nobody(tmp_path):
    store, rows, user = stored(tmp_path / "all")
    seen = np.array([u != "b" for u in user])
    stream = Cleared(store, "user", {"a"})
    found = torch.cat([batch.rows["0"] for batch in stream])
    assert torch.equal(found, rows[seen])
    assert [int(i) for b in stream for i in b.order] == list(range(int(seen.sum())))
    alone = Stream.of({"0": rows[seen]}, ids=[f"{user[i]}{i}" for i in np.flatnonzero(seen)])
    one, two = fit(stream), fit(alone)
    assert one.header["data"]["n_examples"] == two.header["data"]["n_examples"] == int(seen.sum())
    mine, its = (next(iter(f.scorers.values())).score(rows) for f in (one, two))
    torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("the same bytes whatever another user's rows are")
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_a_reader_may_not_see_change_no_byte(tmp_path, grouped):
    files = {}
    for seed in (1, 2):
        store = stored(tmp_path / f"{seed}", seed, grouped=grouped)[0]
        for who in ("a", "b"):
            path = tmp_path / f"{seed}{who}.sonde"
            fit(Cleared(store, "user", {who})).save(path)
            files[seed, who] = path.read_bytes()
    assert files[1, "a"] == files[2, "a"]
    assert files[1, "b"] != files[2, "b"]  # the rows do differ


@pytest.mark.slow
@pytest.mark.truth("the user that each example's own id names")
def test_labels_belong_to_their_examples_if_texts_of_other_lengths_are_read_first(tmp_path):
    user = ["a", "a", "b", "b", "a", "b", "a"]
    texts = [
        {"text": "x = 1\n" * n, "id": f"{who}{n}"}
        for who, n in zip(user, range(7, 0, -1), strict=True)
    ]
    for more in (0, 3):
        items = [{**row, "id": f"{row['id']}-{more}"} for row in texts[more:]]
        how: Any = {"sites": "blocks.0", "reducer": "mean", "batch_size": 2}
        write_store(
            sonde.read("sonde:stdlib", items, **how),
            tmp_path / f"{more}",
            columns={"user": user[more:]},
        )
        store = Store(tmp_path / f"{more}")
        stored = [str(name) for batch in store for name in batch.ids]
        assert stored != [row["id"] for row in items]  # batches are in another order
        assert store.column("user") == user[more:]
        assert [key.decode() for key in store.column(None)] == [row["id"] for row in items]
        for who in ("a", "b"):
            seen = [str(name) for batch in Cleared(store, "user", {who}) for name in batch.ids]
            assert sorted(seen) == sorted(r["id"] for r in items if r["id"][0] == who)


@pytest.mark.truth("the user that each example's own id names")
def test_labels_belong_to_their_examples_if_some_cannot_be_read(tmp_path):
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    whole, user = png.getvalue(), list("aabbab")
    items = [{"image": whole, "id": f"{who}{i}"} for i, who in enumerate(user)]
    for i in (1, 3):
        items[i]["image"] = whole[: len(whole) // 2]  # it is seen when it is decoded
    stream = sonde.read(
        cnn(channels=3),
        items,
        sites="conv1",
        reducer="mean",
        skip_bad=True,
        image_mean=0,
        image_std=1,
    )
    store = Store(write_store(stream, tmp_path / "a", columns={"user": user}))
    assert store.column("user") == ["a", None, "b", None, "a", "b"]
    for who, own in (("a", ["a0", "a4"]), ("b", ["b2", "b5"])):
        assert [i for batch in Cleared(store, "user", {who}) for i in batch.ids] == own


def copied(folder, hidden, of_texts):
    """Return what user a may see of a store where some rows are equal, within and across users.

    Without ``hidden`` the store holds the rows of user a alone.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 60, (3 + i % 7,), generator=generator) for i in range(120)]
    told: list[tuple[str, int]] = []
    for i in range(120):
        told += [("b", i)] * (i % 3 == 0 and hidden) + [("a", i)] * (1 + (i % 10 == 0))
        told += [("b", 119 - i)] * (i % 4 == 0 and hidden)
    if of_texts:
        how: Any = {"sites": "transformer.h.0", "batch_size": 1, "reducer": "tokens"}
        stream = sonde.read(gpt2(), [tokens[i] for _, i in told], **how)
    else:
        x = torch.randn(120, WIDTH, generator=generator)
        position = [i % 2 for _, i in told]
        ids = [f"{i // 2}" for _, i in told]
        stream = Stream.of({"0": x[[i for _, i in told]]}, ids=ids, position=position)
    write_store(stream, folder, columns={"user": [who for who, _ in told]}, unit_size=32)
    return Cleared(Store(folder), "user", {"a"})


@pytest.mark.truth("the bytes of a fit on a store without the other user's rows")
@pytest.mark.parametrize("of_texts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_of_others_change_no_byte_by_being_there(tmp_path, of_texts):
    files = []
    for hidden in (False, True):
        seen = copied(tmp_path / f"{hidden}", hidden, of_texts)
        fitted = sonde.fit(
            ["mahalanobis(shrinkage=0.1)", "knn(k=2)"], seen, calibrate=0.3, progress=False
        )
        fitted.save(tmp_path / f"{hidden}.sonde")
        files.append((tmp_path / f"{hidden}.sonde").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("change", ["rows", "label"])
def test_visible_rows_of_other_content_are_other_data(tmp_path, change):
    found = []
    for seed in (0, 1):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed * (change == "rows")))
        items = [{"input": x[i], "id": f"{i}", "label": seed * (change == "label") + i % 2}
                 for i in range(6)]  # fmt: skip
        stream = sonde.read(mlp(), items, sites="2")
        write_store(stream, tmp_path / f"{seed}", columns={"user": ["a"] * 6})
        found.append(Cleared(Store(tmp_path / f"{seed}"), "user", {"a"}).identity())
    assert found[0]["data"]["cleared"] != found[1]["data"]["cleared"]


@pytest.mark.truth("the order in which the rows were given")
def test_a_copy_of_the_visible_rows_keeps_rows_of_one_example_together(tmp_path):
    seen = copied(tmp_path / "a", True, False)
    copy = Store(write_store(seen, tmp_path / "b"))
    for one, two in zip(seen, copy, strict=True):
        assert two.scattered
        for name in ("example", "piece", "occurrence", "position"):
            assert torch.equal(one.column(name, "0"), two.column(name, "0"))
    assert copy.examples_of_rows == seen.examples_of_rows is not None


def test_labels_travel_with_what_was_fitted(tmp_path):
    store = stored(tmp_path / "all")[0]
    of = {who: Cleared(store, "user", {who}) for who in ("a", "b")}
    both = Cleared(store, "user", {"a", "b"})
    path = tmp_path / "a.sonde"
    fit(of["a"]).save(path)
    fitted = Fitted.load(path)
    sonde.score(fitted, of["a"], progress=False)
    part = StreamPart(of["a"], tuple(of["a"].units()))  # as workers get it
    sonde.score(fitted, part, progress=False)
    for reader in (of["b"], store):
        with pytest.raises(StateError, match="rows with the labels a, for which this reader"):
            sonde.score(fitted, reader, progress=False)
    freed = fitted.declassified("a")
    assert sonde.score(freed, store, progress=False).num_rows == len(store)
    with pytest.raises(StateError, match="expected labels among a, got c"):
        fitted.declassified("c")
    copied = write_store(of["a"], tmp_path / "copy")
    with pytest.raises(StateError, match="the labels a"):  # a copy keeps them, and clears nobody
        sonde.score(fit(Store(copied)), Store(copied), progress=False)
    sonde.score(fit(both), both, progress=False)


def test_a_merged_state_has_the_labels_of_both(tmp_path):
    parts = []
    for k, who in enumerate("ab"):
        rows = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(k))
        stream = Stream.of({"0": rows}, ids=[f"{who}{i}" for i in range(40)])
        write_store(stream, tmp_path / who, columns={"user": [who] * 40})
        parts.append(Cleared(Store(tmp_path / who), "user", {who}))
    merged = merge(*(fit(part) for part in parts))
    for part in parts:
        with pytest.raises(StateError, match=r"rows with the labels [ab], for which"):
            sonde.score(merged, part, progress=False)


def test_a_redacted_store_holds_none_of_the_names(tmp_path):
    names = ("Zoltan", "5550199")
    texts = [f"def call(): return {names[i % 2]!r}  # number {i}" for i in range(6)]
    policy = Policy((r"\bZoltan\b", r"[0-9]{7}"))
    rows = list(policy.rows({"text": text, "id": f"{text[18:26]}/{i}", "n": i}
                            for i, text in enumerate(texts)))  # fmt: skip
    assert [row["n"] for row in rows] == list(range(6))
    stream = sonde.read("sonde:stdlib", rows, sites="blocks.0", reducer="tokens", id_column="id")
    write_store(stream, tmp_path / "acts", columns={"text": [row["text"] for row in rows]})
    fit(Store(tmp_path / "acts")).save(tmp_path / "acts" / "fitted.sonde")
    files = [path for path in (tmp_path / "acts").rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files)
    assert not any(name.encode() in held for name in names)
    pseudonym = policy.redacted("Zoltan")
    assert pseudonym.encode() in held  # what is looked for would be found
    assert pseudonym != Policy((r"\bZoltan\b",)).redacted("Zoltan")
    assert policy.redacted("Zoltans") == "Zoltans"


@pytest.mark.truth("the labels as they were given")
@pytest.mark.parametrize(
    ("labels", "mine", "own"),
    [
        ([1.0, 2.0, None, 1, 2.5], {1}, [0, 2, 3]),
        ([1.0, 2.0, None, 1, 2.5], {"1", 2.5}, [0, 2, 3, 4]),
        ([1, 2, None, 1, 10], {1.0}, [0, 2, 3]),
        (["1.0", "1", None, 1, 1.0], {"1"}, [1, 2, 3]),
        ([b"a", b"b", None, "a", "b"], {b"a"}, [0, 2, 3]),
        ([b"a", b"b", None, "a", "b"], {"b"}, [1, 2, 4]),
        (np.array([3, 1, 2, 3, 1]), {np.int64(3)}, [0, 3]),
    ],
)
def test_a_label_is_the_same_however_it_is_written(tmp_path, labels, mine, own):
    stream = Stream.of({"0": torch.randn(5, WIDTH)}, ids=[str(i) for i in range(5)])
    store = Store(write_store(stream, tmp_path / "a", columns={"user": labels}))
    found = Cleared(store, "user", mine)
    assert [int(i) for batch in found for i in batch.ids] == own
    assert set(found.labels) <= set(found.clearance)


class Note(NamedTuple):
    """A text and what it is about."""

    text: str
    about: Any


def test_texts_in_any_container_are_redacted():
    policy = Policy(("Ada",))
    told = policy.redacted("Ada")
    found = policy.redacted(
        MappingProxyType({"text": Note("Ada", {"Ada"}), "n": 3, "of": np.array([["Ada", "b"]])})
    )
    assert (found["text"], found["n"]) == (Note(told, {told}), 3)
    assert found["of"].tolist() == [[told, "b"]]


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(InputError, match="for the text to hide, got none"):
        Policy(())
    store = stored(tmp_path / "all")[0]
    with pytest.raises(InputError, match=r"no column 'users'.*Did you mean.*user"):
        Cleared(store, "users", {"a"})
    with pytest.raises(InputError, match="a set of labels, got the text 'a'"):
        Cleared(store, "user", "a")
    write_store(Stream.of({"0": torch.ones(3, 2)}), tmp_path / "b", columns={"user": ["b"] * 3})
    with pytest.raises(
        InputError,
        match=r"whose 'user' is one of the cleared labels .a, c., got none among 3 examples",
    ):
        Cleared(Store(tmp_path / "b"), "user", {"c", "a"})


@pytest.mark.truth("brute force: the likeliest candidate of a table of word pairs")
def test_false_names_fit_the_context_and_never_say_the_name():
    table = {("King", "Arthur"): 3.0, ("King", "Rome"): 0.5, ("in", "Rome"): 4.0}
    asked = []

    def fits(before, candidates, after):
        asked.append((before, after))
        return [table.get((before.split()[-1], other), 0.0) for other in candidates]

    names = ("Arthur", "Rome", "Ada", "Oslo")
    policy = Policy((r"Henry|Paris",), key=b"1" * 16, candidates=names, fits=fits)
    text = "King Henry lives in Paris and Henry sleeps"
    assert policy.redacted(text) == "King Arthur lives in Rome and Arthur sleeps"
    assert [before for before, _ in asked] == ["King ", "King Arthur lives in "]
    assert not any("Henry" in part or "Paris" in part for pair in asked for part in pair)
    assert policy.redacted({"a": [text]}) == {"a": ["King Arthur lives in Rome and Arthur sleeps"]}
    written = Policy((r"Henry|Paris",), candidates=lambda before, _: ["Paris", before[:2] + "x"])
    assert written.redacted(text) == "King Kix lives in Kix and Kix sleeps"
    own = Policy((r"Ada",), key=b"1" * 16, candidates=("Ada", "Arthur", "Oslo"))
    assert own.redacted("Ada") in ("Arthur", "Oslo")
    assert own.redacted("Ada") == own.redacted("hello Ada")[6:]
    alone = Policy((r"Ada",), key=b"1" * 16, candidates=("Ada",))
    assert alone.redacted("Ada").startswith("[")
    keyed = [Policy((r"Ada",), key=bytes([k]) * 16, candidates=tuple("abcdefgh"), tried=1)
             .redacted("Ada") for k in range(40)]  # fmt: skip
    assert len({*keyed}) > 5
    with pytest.raises(InputError, match="expected candidates for fits"):
        Policy(("a",), fits=fits)
    with pytest.raises(InputError, match="expected 1 scores from fits"):
        Policy(("a",), candidates=("b",), fits=lambda *_: []).redacted("a")
