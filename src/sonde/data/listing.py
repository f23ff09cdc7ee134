"""Listing of a source before a run: its examples, their order and their groups."""

from array import array
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import compress, islice
from typing import Any, Final

import numpy as np

from sonde.core.batch import word_of
from sonde.core.errors import InputError
from sonde.core.hashing import base_hashes, draws, rank_key
from sonde.data.columns import LABEL_NAMES, PAIRED, Layout
from sonde.data.encoder import EmptyText, Encoder, Piece
from sonde.data.labels import LabelColumn, Labels
from sonde.data.limited import Kept
from sonde.data.packed_keys import PackedKeys
from sonde.data.sources import Row, Source, is_missing

LISTED_AT_ONCE = 256
MOST_SIDES = 2**31
ALL: Final = Kept()


@dataclass(frozen=True, eq=False)
class Listing:
    """Every example of a data set, in the planned order, without its content.

    Parameters
    ----------
    keys : sequence of bytes
        Key of each example: the hash of its id if there is an id column, else of its content.
        Chunks of one item have equal keys.
    group_keys : sequence of bytes
        Key of each example's group, hashed like ``keys``.
    contents : sequence of bytes
        Hash of each example's content.
    occurrence, row, piece, first, length, truncated, label, size : arrays
        For each example: its item's number among equal items, its row in the source, the number of
        the piece, the piece's first token, its tokens (0 = not counted yet), tokens cut off, class
        number, bytes.
    pair, side : arrays
        For each example: hash of the pair that it belongs to and which member it is (-1 = none).
    labels : Labels
        Class index of each example; -1 for no label.
    fingerprint : str
        Hash of all of the above and of the content.
    n_items, n_skipped : int
        Rows that were listed and rows that were left out.
    n_chunked, n_truncated : int
        Items that were cut into chunks, or short.
    skipped : tuple of str
        Why rows were left out (the first few).
    late : frozenset of str
        Columns with a meaning that the layout misses, because the first rows lack the columns.
    target : array or None
        The number of each example, if the label column holds numbers; NaN = no number.
    missing : mapping of str to int
        In how many rows of the source, left out or not, a column of the input has no value.
    sample_of : int or None
        Number of rows that the listed ones are a sample of, if a limit kept a sample.
    """

    keys: Sequence[bytes]
    group_keys: Sequence[bytes]
    contents: Sequence[bytes]
    occurrence: np.ndarray
    row: np.ndarray
    piece: np.ndarray
    first: np.ndarray
    length: np.ndarray
    truncated: np.ndarray
    label: np.ndarray
    size: np.ndarray
    pair: np.ndarray
    side: np.ndarray
    labels: Labels
    fingerprint: str
    n_items: int
    n_skipped: int
    n_chunked: int
    n_truncated: int
    skipped: tuple[str, ...]
    late: frozenset[str] = frozenset()
    target: np.ndarray | None = None
    missing: Mapping[str, int] = field(default_factory=dict[str, int])
    sample_of: int | None = None

    def __len__(self) -> int:
        return len(self.keys)


class _Lists:
    """The growing columns of a listing; those that cannot differ are one object.

    Parameters
    ----------
    has_ids, has_groups : bool
        Whether keys may differ from the hashes of contents, and groups from keys.
    """

    def __init__(self, has_ids: bool, has_groups: bool) -> None:
        self.contents = PackedKeys()
        self.keys = PackedKeys() if has_ids else self.contents
        self.group_keys = PackedKeys() if has_groups else self.keys
        names = "row piece first length truncated item size pair side"
        self.names = tuple(names.split())
        self.numbers = {name: array("q") for name in self.names}
        self.missing: Counter[str] = Counter()
        self.content = blake2b(digest_size=16)
        self.labels = LabelColumn()
        self.n_items = self.n_chunked = self.n_truncated = 0
        self.skipped: list[str] = []
        self.n_skipped = 0

    def add(
        self,
        row: int,
        key: bytes,
        group: bytes,
        content: bytes,
        size: int,
        pieces: Sequence[Piece],
        member: tuple[int, int] = (0, -1),
    ) -> None:
        """Add the examples of one item."""
        for number, piece in enumerate(pieces):
            self.contents.append(content)
            if self.keys is not self.contents:
                self.keys.append(key)
            if self.group_keys is not self.keys:
                self.group_keys.append(group)
            entry = (row, number, piece.first, piece.length, piece.truncated)
            values = (*entry, self.n_items, size, *member)
            for name, value in zip(self.names, values, strict=True):
                self.numbers[name].append(value)
        self.n_items += 1
        self.n_chunked += len(pieces) > 1
        self.n_truncated += any(p.truncated for p in pieces)


def list_source(
    source: Source,
    encoder: Encoder,
    layout: Layout,
    *,
    id2label: Mapping[int, str] | None = None,
    kept: Kept = ALL,
    skip_bad: bool = False,
    known: Container[str] = (),
    arguments: Collection[str] = (),
    new_classes: bool = False,
    is_told: bool = False,
) -> Listing:
    """Return the listing of a source, from one streamed pass without decoding.

    Parameters
    ----------
    source, encoder, layout
    id2label : mapping or None
        The names of the model's classes.
    kept : Kept
        The rows that are read.
    skip_bad : bool
        Leave out broken items and count them.
    known : container of str
        The columns that the layout was made from.
    arguments : collection of str
        Names of the parameters of the model's ``forward``.
    new_classes : bool, default=False
        Accept labels that the model has no class for, beside those that it has.
    is_told : bool, default=False
        Whether the user gave ``id2label``: then new labels are accepted even if none has a class.

    Raises
    ------
    InputError
        If an item is broken (and ``skip_bad`` is off), or none is left.
    """
    lists = _Lists(layout.id is not None, layout.group is not None or layout.paired)
    watched = {name for name in {*_meanings(layout), *arguments} if name not in known}
    late: set[str] = set()
    for block in _blocks(kept.of_source(source)):
        late.update(*(watched & row.keys() for _, row in block))
        _list_block(block, lists, source, encoder, layout, skip_bad)
    if not lists.keys:
        n_left_out = lists.n_skipped + source.n_bad
        left_out = f" ({n_left_out} broken or empty items were left out)" if n_left_out else ""
        raise InputError(f"{source.name} is empty: it has no item{left_out}. Pass data with items.")
    column = layout.label or "label"
    names = source.names_of(column) if layout.label else None
    labels = lists.labels.finish(id2label, names, column, new_classes, is_told)
    numbers = {n: np.frombuffer(v, dtype=np.int64) for n, v in lists.numbers.items()}
    item = numbers.pop("item")
    label = labels.values[item]
    is_first = numbers["piece"] == 0
    firsts = lists.keys if is_first.all() else PackedKeys(compress(lists.keys, is_first))
    lists.content.update(label.tobytes())
    return Listing(
        keys=lists.keys,
        group_keys=lists.group_keys,
        contents=lists.contents,
        occurrence=firsts.occurrences()[np.cumsum(is_first) - 1],
        **numbers,
        label=label,
        labels=labels,
        target=None if labels.numbers is None else labels.numbers[item],
        fingerprint=lists.content.hexdigest(),
        n_items=lists.n_items,
        n_skipped=lists.n_skipped + source.n_bad,
        n_chunked=lists.n_chunked,
        n_truncated=lists.n_truncated,
        skipped=tuple(lists.skipped),
        late=frozenset(late),
        missing=dict(lists.missing),
        sample_of=kept.of,
    )


def pick(listing: Listing, n: int, seed: int) -> Listing:
    """Return the ``n`` examples of smallest sampling key, in the planned order."""
    if n >= len(listing):
        return listing
    base = base_hashes(listing.keys, "sample", seed)
    rank = rank_key(draws(base, listing.first, listing.occurrence)).numpy()
    kept = np.sort(np.argsort(rank, kind="stable")[:n])
    return taken(listing, kept, f"{n}|{seed}")


def taken(listing: Listing, kept: np.ndarray, how: str) -> Listing:
    """Return some examples of a listing, by index.

    Parameters
    ----------
    listing : Listing
    kept : array of int
        Sorted.
    how : str
        How the examples were chosen, for the fingerprint.
    """
    rows = listing.row[kept]
    names = "occurrence row piece first length truncated label size pair side"
    arrays = tuple(names.split())
    return replace(
        listing,
        keys=PackedKeys(listing.keys[i] for i in kept),
        group_keys=PackedKeys(listing.group_keys[i] for i in kept),
        contents=PackedKeys(listing.contents[i] for i in kept),
        **{name: getattr(listing, name)[kept] for name in arrays},
        target=None if listing.target is None else listing.target[kept],
        fingerprint=blake2b(f"{listing.fingerprint}|{how}".encode(), digest_size=16).hexdigest(),
        n_items=len(np.unique(rows)),
        n_chunked=len(np.intersect1d(rows, listing.row[listing.piece > 0])),
        n_truncated=len(np.unique(rows[listing.truncated[kept] > 0])),
    )


def _meanings(layout: Layout) -> set[str]:
    """Return the default column names that the layout does not use."""
    labels = LABEL_NAMES if layout.label is None else ()
    own = [name for name in ("id", "group") if getattr(layout, name) is None]
    return {*labels, *own, *(() if layout.paired else PAIRED)}


def _blocks(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    iterator = iter(rows)
    while block := list(islice(iterator, LISTED_AT_ONCE)):
        yield block


def _list_block(
    block: list[tuple[int, Row]],
    lists: _Lists,
    source: Source,
    encoder: Encoder,
    layout: Layout,
    skip_bad: bool,
) -> None:
    good: list[tuple[int, Row, bytes, int]] = []
    beside: list[bytes] = []
    members: list[tuple[int, int]] = []
    for index, row in block:
        lists.missing.update(encoder.missing(row))
        try:
            item = index, row, encoder.key(row), encoder.size(row)
            more, member = encoder.other_content(row), _member(row, layout)
            beside.append(more + (repr(member).encode() if layout.paired else b""))
            members.append(member)
            good.append(item)
        except InputError as error:
            _skip(lists, source, index, error, skip_bad)
    all_pieces = _pieces_of(good, lists, source, encoder, skip_bad)
    for (index, row, content, size), more, member, pieces in zip(
        good, beside, members, all_pieces, strict=True
    ):
        if pieces is None:
            continue
        named = None if layout.id is None else row.get(layout.id)
        none = content if layout.id is None else content.hex().encode()
        key = none if is_missing(named) else _word(named)
        group = _group(row, layout, key)
        lists.content.update(content + key + b"|" + group + b"|" + more)
        lists.labels.add(row.get(layout.label) if layout.label else None)
        lists.add(index, key, group, content, size, pieces, member)


def _pieces_of(
    good: list[tuple[int, Row, bytes, int]],
    lists: _Lists,
    source: Source,
    encoder: Encoder,
    skip_bad: bool,
) -> list[list[Piece] | None]:
    try:
        return list(encoder.pieces([row for _, row, _, _ in good]))
    except InputError:
        pass
    out: list[list[Piece] | None] = []
    for index, row, _, _ in good:
        try:
            out.append(encoder.pieces([row])[0])
        except InputError as error:
            _skip(lists, source, index, error, skip_bad)
            out.append(None)
    return out


def _skip(lists: _Lists, source: Source, index: int, error: InputError, skip_bad: bool) -> None:
    message = f"{source.where(index)}: {error}"
    if not skip_bad and not isinstance(error, EmptyText):
        raise InputError(f"{message}. Fix it, or pass skip_bad=True (--skip-bad).") from None
    lists.n_skipped += 1
    if len(lists.skipped) < 5:
        lists.skipped.append(message)


def _group(row: Row, layout: Layout, key: bytes) -> bytes:
    """Return an item's group, else its pair, else the item itself."""
    side: Any = row.get(PAIRED[1])
    together: Any = None
    if layout.group is not None:
        together = row.get(layout.group)
    elif layout.paired and (is_missing(side) or int(side) >= 0):
        together = row.get(PAIRED[0])
    return key if is_missing(together) else _word(together)


def _member(row: Row, layout: Layout) -> tuple[int, int]:
    """Return the hash of an item's pair, and its side; 0 and -1 without a side."""
    side: Any = row.get(PAIRED[1])
    if not layout.paired or is_missing(side):
        return 0, -1
    pair = row.get(PAIRED[0])
    if is_missing(pair):
        raise InputError("expected a value in column 'pair' for each value in 'side'")
    try:
        whole = int(side)
        fits = whole == float(side)
    except (TypeError, ValueError, OverflowError):
        whole, fits = 0, False
    if not fits or not -1 <= whole < MOST_SIDES:
        raise InputError(f"expected a whole number of at least -1 in column 'side', got {side!r}")
    return word_of(_word(pair)), whole


def _word(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogatepass")
