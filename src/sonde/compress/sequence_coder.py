"""Lossless coding of token sequences by a model that predicts the next token."""

import json
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from sonde.compress._range_coder import table_coder
from sonde.compress._wire import Reader, count_bytes
from sonde.core.codec import Codec
from sonde.core.errors import InputError, StateError
from sonde.core.hashing import tensor_key
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.repacking import in_own_form
from sonde.engine.progress import Bar
from sonde.files.part_facts import certain_parts
from sonde.tap import parts
from sonde.tap.hooks.cache import cache_argument, cache_of
from sonde.weights import as_model, module_of

BLOCK = 256
"""Tokens of one block: a block is coded first, then the token in it, each in 24 bits."""

PACKAGES = ("torch", "transformers", "constriction")
DEVICES = ("cpu", "cuda", "mps")
_NOT_COMPUTED = ("transformers_version", "_name_or_path", "architectures", "dtype")


@final
@dataclass(frozen=True, eq=False)
class SequenceCoder(Codec):
    """Token ids, range-coded with a model's next-token probabilities.

    The sequence is cut into windows; each window begins without memory of the one before.
    Length: at most ``-sum log2 p(token | its window so far)`` + .1 % + 64 bytes.

    The decoder repeats the encoder's forwards one token at a time, with the same windows side by
    side on the same number of threads. The stream holds a fingerprint of the model, the versions
    that computed the probabilities and a checksum of the ids: another model or version, or a
    processor that rounds otherwise, is refused.

    Range        ids in int64; lossless.
    Cost         one forward of ``rows`` tokens for each token of a window, in both directions;
                 without a cache in the model, one of the window so far.
    Assumes      a causal model without dropout, whose ``logits`` (or output) have a last axis of
                 tokens.
    Differs      from the paper: any token ids; a window sees nothing of the one before but what
                 ``before`` repeats, and images come as ids in raster order.

    Parameters
    ----------
    model : Model or nn.Module
        A language model.
    window : int or None, default=None
        Tokens of a window; by default the model's context.
    rows : int, default=32
        Windows that are read side by side: more are faster and take more memory.
    n_tokens : int or None, default=None
        Size of the vocabulary; by default the configuration's.
    start : int or None, default=None
        The token that stands before each window; by default the model's start-of-text or
        end-of-text token, else 0.
    before : tuple of int, default=()
        Token ids that the model reads before each window, such as a task prompt and coded examples.
        The decoder needs the same ids.
    allowed : tuple of int or None, default=None
        The only token ids that occur, such as those of pixel values: all probability goes to them.
        By default the whole vocabulary.
    progress : bool, default=False
        Show a progress bar if coding takes more than two seconds.

    Examples
    --------
    >>> import sonde, torch
    >>> coder = SequenceCoder(sonde.load("sonde:stdlib"))
    >>> ids = torch.tensor(list(b"def __init__(self, name):"))
    >>> coder.decode(coder.encode(ids)).equal(ids)
    True

    References
    ----------
    chen2024nextpixel
    """

    model: Model | nn.Module
    window: int | None = None
    rows: int = 32
    n_tokens: int | None = None
    start: int | None = None
    before: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None
    progress: bool = False
    paper: ClassVar[str] = "chen2024nextpixel"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"window": 7, "rows": 2, "before": (1, 2)})

    def __post_init__(self) -> None:
        context = self._configured("max_position_embeddings")
        room = None if context is None else context - len(self.before)
        if self._window() < 1 or (room is not None and self._window() > room):
            beside = f" less {len(self.before)} tokens before each window" * bool(self.before)
            raise InputError(
                f"SequenceCoder: expected a window from 1 to the model's context {context}{beside},"
                f" got {self.window!r}."
            )
        check_ranges(self, rows=">= 1")
        if self._vocabulary() is None:
            raise InputError(
                "SequenceCoder: the model's configuration has no vocab_size. Pass n_tokens."
            )
        tokens = range(self.alphabet)
        if self.allowed == () or not {*self.before, *(self.allowed or ())} <= {*tokens}:
            raise InputError(
                f"SequenceCoder: expected token ids from 0 to {self.alphabet - 1} in before and "
                f"allowed, at least one of them allowed, got {self.before} and {self.allowed}."
            )

    @property
    def alphabet(self) -> int:
        """Size of the model's vocabulary."""
        size = self._vocabulary()
        assert size is not None  # checked when it was made
        return size

    def pack(self, x: Tensor) -> bytes:
        """Return the header that decoding needs, and the range coder's words."""
        queue, family = table_coder("SequenceCoder")
        threads, window = torch.get_num_threads(), self._window()
        start = self._start()
        strange = set() if self.allowed is None else {*x.tolist()} - {*self.allowed}
        if strange:
            raise InputError(
                f"SequenceCoder.encode: expected allowed token ids alone, got {min(strange)} as "
                "well. Add it to allowed."
            )
        encoder = queue.RangeEncoder()
        bar = Bar("encode", len(x), self.progress)
        with computing("SequenceCoder", module_of(self.model), threads), bar:
            for first, lengths in _groups(len(x), window, self.rows):
                at = first + np.arange(len(lengths)) * window
                steps = self._steps(len(lengths), start)
                p = next(steps)
                for t in range(int(lengths.max())):
                    live = np.flatnonzero(lengths > t)
                    ids = x.numpy()[at[live] + t]
                    for symbols, table in _stages(p[live], ids):
                        encoder.encode(symbols, family, table)
                    bar.advance(len(live))
                    if t + 1 < lengths.max():
                        p = steps.send(_filled(ids, live, len(lengths), start))
        head = count_bytes(start, window, self.rows, len(x), threads)
        check = zlib.crc32(x.numpy().astype("<i8").tobytes()).to_bytes(4, "little")
        words = np.asarray(encoder.get_compressed()).astype("<u4").tobytes()
        return self._fingerprint() + self._versions() + head + check + words

    def unpack(self, payload: bytes) -> Tensor:
        """Return the ids, decoded with the forward passes that ``pack`` ran."""
        reader = Reader("SequenceCoder", payload)
        self._refuse_others(reader)
        start, window, rows, n, threads = (reader.count() for _ in range(5))
        check = int.from_bytes(reader.bytes(4), "little")
        queue, family = table_coder("SequenceCoder")
        words = np.frombuffer(reader.bytes(len(payload) - reader.at), "<u4")
        decoder = queue.RangeDecoder(words.astype(np.uint32))
        out = np.zeros(n, dtype=np.int64)
        bar = Bar("decode", n, self.progress)
        with computing("SequenceCoder", module_of(self.model), threads), bar:
            for first, lengths in _groups(n, window, rows):
                at = first + np.arange(len(lengths)) * window
                steps = self._steps(len(lengths), start)
                p = next(steps)
                for t in range(int(lengths.max())):
                    live = np.flatnonzero(lengths > t)
                    ids = _decoded(decoder, family, p[live])
                    out[at[live] + t] = ids
                    bar.advance(len(live))
                    if t + 1 < lengths.max():
                        p = steps.send(_filled(ids, live, len(lengths), start))
        if zlib.crc32(out.astype("<i8").tobytes()) != check:
            raise StateError(
                "SequenceCoder.decode: the checksum of the decoded ids differs from that of the "
                "encoded ids: the model has other hooks or functions than in encoding, or this "
                "machine computes different probabilities. Decode with the unchanged model, on "
                "the machine that encoded or a processor with the same kernels."
            )
        return torch.from_numpy(out)

    def _steps(self, n_rows: int, start: int) -> Generator[np.ndarray, np.ndarray, None]:
        """Yield the probabilities of each row's next token, and receive that token."""
        module = module_of(self.model)
        device = _device(module)
        fed = torch.tensor([[start, *self.before]] * n_rows, device=device)
        ruled_out = None
        if self.allowed is not None:
            ruled_out = torch.ones(self.alphabet, dtype=torch.bool)
            ruled_out[list(self.allowed)] = False
        cache: Any = None
        while True:
            given = {} if cache is None else {cache_argument(module): cache}
            with torch.inference_mode():
                out = module(fed, **given)
            logits = out if isinstance(out, Tensor) else out.logits
            last = logits[:, -1, : self.alphabet].double().cpu()
            if not bool(last.isfinite().any(-1).all() and not last.isnan().any()):
                got = "NaN" if bool(last.isnan().any()) else "infinity for every token"
                raise InputError(
                    f"SequenceCoder: expected finite logits, got {got} in {logits.dtype}. "
                    + (
                        "Check the weights: sonde scan."
                        if logits.dtype in (torch.float32, torch.float64)
                        else "Load the model in float32."
                    )
                )
            p = (last if ruled_out is None else last.masked_fill(ruled_out, -torch.inf)).softmax(-1)
            cache = cache_of(out)
            new = torch.from_numpy((yield p.numpy())).to(device)[:, None]
            fed = new if cache is not None else torch.cat([fed, new], 1)

    def _refuse_others(self, reader: Reader) -> None:
        name = "SequenceCoder.decode"
        stored, own = reader.bytes(8), self._fingerprint()
        # earlier versions left the parts out; all weights are read again only for their streams
        if stored != own and stored != self._fingerprint(of_parts=False):
            raise StateError(
                f"{name}: the stream was written with another model (fingerprint {stored.hex()}, "
                f"this model has {own.hex()}), or with other tokens before or allowed. Pass the "
                "model and the tokens that encoded it."
            )
        of = [".".join(str(reader.count()) for _ in range(3)) for _ in PACKAGES]
        of.append(DEVICES[min(reader.count(), len(DEVICES) - 1)])
        here = [".".join(map(str, _release(package))) for package in PACKAGES]
        here.append(_device(module_of(self.model)).type)
        if of != here:
            raise StateError(
                f"{name}: the stream was written with {', '.join(PACKAGES)} {' '.join(of)}, but "
                f"the installed versions are {' '.join(here)}, whose probabilities may differ in "
                "the last bit. Decode with those versions, on that device."
            )

    def _versions(self) -> bytes:
        kind = _device(module_of(self.model)).type
        if kind not in DEVICES:
            raise InputError(f"SequenceCoder: expected a model on {DEVICES}, got {kind}.")
        numbers = [n for package in PACKAGES for n in _release(package)]
        return count_bytes(*numbers, DEVICES.index(kind))

    def _window(self) -> int:
        if self.window is not None:
            return self.window
        return (self._configured("max_position_embeddings") or 1024) - len(self.before)

    def _fingerprint(self, *, of_parts: bool = True) -> bytes:
        """Return 8 bytes that depend on the model, and on the tokens before and allowed."""
        plain = fingerprint(self.model)
        if of_parts:
            own_parts = json.dumps(certain_parts(parts(module_of(self.model))), sort_keys=True)
            plain = blake2b(plain + own_parts.encode(), digest_size=8).digest()
        if not self.before and self.allowed is None:
            return plain
        allowed = None if self.allowed is None else sorted({*self.allowed})
        return blake2b(
            plain + json.dumps([list(self.before), allowed]).encode(), digest_size=8
        ).digest()

    def _start(self) -> int:
        tokens = (
            self.start,
            self._configured("bos_token_id"),
            self._configured("eos_token_id"),
        )
        return next((k for k in tokens if isinstance(k, int)), 0)

    def _vocabulary(self) -> int | None:
        return self.n_tokens or self._configured("vocab_size")

    def _configured(self, name: str) -> Any:
        return getattr(as_model(self.model).config, name, None)


def fingerprint(model: Model | nn.Module) -> bytes:
    """Return an 8-byte fingerprint of a model's weights and its configuration."""
    module, config = module_of(model), as_model(model).config
    hashed = blake2b(type(module).__name__.encode(), digest_size=8)
    in_own_form(module)
    for name, x in [*module.named_parameters(), *module.named_buffers()]:
        hashed.update(name.encode() + tensor_key(x))
    if config is not None:
        fields = {k: v for k, v in config.to_dict().items() if k not in _NOT_COMPUTED}
        fields["attention"] = getattr(config, "_attn_implementation", None)
        hashed.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return hashed.digest()


def _groups(n: int, window: int, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the start of each group of windows, and the length of its windows."""
    for first in range(0, n, window * rows):
        begins = np.arange(first, min(first + window * rows, n), window)
        yield first, np.minimum(n - begins, window)


def _stages(p: np.ndarray, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the symbols and tables of the blocks, then of the tokens in their blocks."""
    blocks = _blocks(p)
    which = ids // BLOCK
    if blocks.shape[1] > 1:
        yield which.astype(np.int32), blocks.sum(-1)
    yield (ids % BLOCK).astype(np.int32), _inside(blocks, which)


def _decoded(decoder: Any, family: Any, p: np.ndarray) -> np.ndarray:
    """Return the next token of each row."""
    blocks = _blocks(p)
    which = np.zeros(len(p), dtype=np.int64)
    try:
        if blocks.shape[1] > 1:
            which = decoder.decode(family, blocks.sum(-1)).astype(np.int64)
        return which * BLOCK + decoder.decode(family, _inside(blocks, which))
    except (AssertionError, ValueError) as error:
        raise StateError(
            "SequenceCoder.decode: the stream does not fit the probabilities of this machine. "
            "Decode where it was encoded."
        ) from error


def _blocks(p: np.ndarray) -> np.ndarray:
    padded = np.pad(p, ((0, 0), (0, -p.shape[1] % BLOCK)))
    return padded.reshape(len(p), -1, BLOCK)


def _inside(blocks: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return the probabilities in each row's block; uniform if the block has almost no mass."""
    chosen = blocks[np.arange(len(which)), which]
    total = chosen.sum(-1, keepdims=True)
    return np.where(total > 1e-30, chosen / np.maximum(total, 1e-30), 1.0)


def _filled(ids: np.ndarray, live: np.ndarray, n_rows: int, start: int) -> np.ndarray:
    """Return a token for every row; finished rows get the start token."""
    out = np.full(n_rows, start, dtype=np.int64)
    out[live] = ids
    return out


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _release(package: str) -> tuple[int, int, int]:
    numbers = [int(n) for n in re.findall(r"\d+", version(package))]
    first, second, third = [*numbers, 0, 0, 0][:3]
    return first, second, third


@contextmanager
def computing(owner: str, module: nn.Module, threads: int) -> Iterator[None]:
    """Use a number of threads in a ``with`` block, and raise for a model in training mode."""
    if any(m.training for m in module.modules()):
        raise InputError(
            f"{owner}: expected a model in eval mode, got a model in training mode, whose "
            "dropout is random. Call model.eval()."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
