"""How a model reads recordings: its feature extractor and the start of its decoder."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float

from sonde.core.errors import InputError, failed_import, no_file
from sonde.core.hashing import bytes_key, tensor_key
from sonde.core.inputs import Model
from sonde.core.wording import install_extra
from sonde.data._checkpoints import FACTORY
from sonde.data.columns import Layout
from sonde.data.encoder import Collated, Encoder, Piece, Prepared, called, dtype_of
from sonde.data.processors import is_feature_extractor
from sonde.data.sources import Row
from sonde.data.text_encoding import start_token

MAX_AUDIO_BYTES = 2**30


@final
@dataclass(frozen=True, eq=False)
class AudioEncoder(Encoder):
    """One recording per row: a path, encoded bytes, an array, or ``{"array", "sampling_rate"}``.

    Recordings of one length make a batch, so that nothing is padded; a feature extractor that cuts
    and pads every recording to one length (Whisper's) takes them as they come.

    Parameters
    ----------
    processor : transformers feature extractor
    column : str
    base : Path
        Where relative paths start.
    main : str
        The argument of ``forward`` that the extractor makes.
    names : frozenset of str
        Parameters of the model's ``forward``.
    start : int or None
        First token of the decoder, if the model has a decoder.
    dtype : torch.dtype or None
        Type of the model's weights, which features are brought to.
    """

    processor: Any
    column: str
    base: Path
    main: str
    names: frozenset[str]
    start: int | None = None
    dtype: torch.dtype | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    kind: str = "audio"

    @property
    def rate(self) -> int:
        """Samples per second that the model reads."""
        return int(self.processor.sampling_rate)

    @cached_property
    def is_fixed(self) -> bool:
        """True if every recording is cut or padded to one length."""
        lengths = (self.rate // 2, self.rate)
        half, whole = (self._features([np.zeros(n, np.float32)])[self.main] for n in lengths)
        return half.shape == whole.shape

    @property
    def even(self) -> bool:
        """True if a batch may only hold recordings of one length."""
        return not self.is_fixed

    def key(self, row: Row) -> bytes:
        """Hash the bytes of the file, or the samples in memory and their rate."""
        value = stored(row, self.column, self.base)
        if isinstance(value, bytes):
            return bytes_key(value)
        samples, rate = self._given(value)
        return tensor_key(torch.from_numpy(np.append(samples.reshape(-1), np.float64(rate))))

    def size(self, row: Row) -> int:
        """Return the bytes of the file or of the samples."""
        value = stored(row, self.column, self.base)
        return len(value) if isinstance(value, bytes) else self._given(value)[0].nbytes

    def pieces(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return one example for each recording, and the number of samples cut off."""
        most = getattr(self.processor, "n_samples", None) if self.is_fixed else None
        cut = [0 if most is None else max(0, self._length(row) - most) for row in rows]
        return [[Piece(truncated=n)] for n in cut]

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return recordings undecoded; only their lengths are read."""
        lengths = [1 if self.is_fixed else self._length(row) for row in rows]
        return [Prepared(rows[row], lengths[row]) for row, _ in wanted]

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Decode, resample and extract features; undecodable recordings are listed in ``bad``."""
        samples, bad = [], {}
        for i, item in enumerate(items):
            try:
                samples.append(self.samples(item.value))
            except InputError as error:
                bad[i] = str(error)
        if not samples:
            return Collated(bad=bad)
        features = self._features(samples)
        x = features.pop(self.main)
        x = x if self.dtype is None else x.to(self.dtype)
        args, kwargs = called(self.main, x, self.names)
        kwargs |= {name: value for name, value in features.items() if name in self.names}
        if self.start is not None:
            kwargs["decoder_input_ids"] = torch.full((len(samples), 1), self.start)
        return Collated(args, kwargs, bad=bad)

    def samples(self, row: Row) -> Float[np.ndarray, "_sample"]:
        """Return a recording as one channel at the model's rate.

        Raises
        ------
        InputError
            If it cannot be decoded, is empty, or holds values that are not finite.
        """
        value = stored(row, self.column, self.base)
        values, rate = decode(value) if isinstance(value, bytes) else self._given(value)
        values = values.mean(axis=1) if values.ndim == 2 else values
        if not len(values):
            raise InputError("the recording is empty")
        if not np.isfinite(values).all():
            raise InputError("the recording holds values that are not finite")
        return resampled(values.astype(np.float32), rate, self.rate)

    def identity(self) -> dict[str, Any]:
        """Return the column and the recipe as identity."""
        return {"kind": self.kind, "inputs": [self.column], "rate": self.rate, **self.origin}

    def _features(self, samples: list[np.ndarray]) -> dict[str, torch.Tensor]:
        features = self.processor(samples, sampling_rate=self.rate, return_tensors="pt")
        return dict(features)

    def _given(self, value: Any) -> tuple[np.ndarray, int]:
        """Return samples in memory with their rate; integers become fractions of their range."""
        rate = self.rate
        if isinstance(value, Mapping):
            value, rate = value["array"], int(value.get("sampling_rate") or rate)
        values = np.asarray(value)
        if values.ndim not in (1, 2) or values.dtype.kind not in "fi":
            raise InputError(
                f"expected samples (sample,) or (sample, channel), got {values.dtype} of shape "
                f"{values.shape}"
            )
        if values.dtype.kind == "i":
            values = values / -float(np.iinfo(values.dtype).min)
        return values, rate

    def _length(self, row: Row) -> int:
        """Return the samples of a recording at the model's rate, from its header if possible."""
        value = stored(row, self.column, self.base)
        if isinstance(value, bytes):
            n, rate = _header(value)
        else:
            values, rate = self._given(value)
            n = len(values)
        return -(-n * self.rate // rate)


def stored(row: Row, column: str, base: Path) -> Any:
    """Return the stored form of a recording: a file's bytes, an array, or an array with its rate.

    Raises
    ------
    InputError
        If there is no such file, or it is too large.
    """
    value = row.get(column)
    if isinstance(value, Mapping) and value.get("array") is None:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | Path):
        path = base / value
        if not path.is_file():
            raise InputError(no_file(path, "audio file"))
        if path.stat().st_size > MAX_AUDIO_BYTES:
            raise InputError(f"the recording is larger than {MAX_AUDIO_BYTES >> 20} MiB")
        return path.read_bytes()
    if isinstance(value, bytes | Mapping | np.ndarray | list):
        return value
    if isinstance(value, torch.Tensor):
        return value.numpy()
    raise InputError(
        f"expected a recording or its path in column {column!r}, got {type(value).__name__}"
    )


def decode(found: bytes) -> tuple[Float[np.ndarray, "_sample _channel"], int]:
    """Return samples in [-1, 1] and their rate, from the bytes of a WAV, FLAC or other file."""
    try:
        values, rate = _soundfile().read(io.BytesIO(found), dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise InputError(f"the recording cannot be decoded, it may be cut off ({error})") from None
    return values, int(rate)


def resampled(
    values: Float[np.ndarray, "_sample"], rate: int, wanted: int
) -> Float[np.ndarray, "_sample"]:
    """Return samples at another rate, by an anti-aliasing polyphase filter."""
    if rate == wanted:
        return values
    from scipy.signal import resample_poly

    divisor = int(np.gcd(rate, wanted))
    return resample_poly(values, wanted // divisor, rate // divisor).astype(np.float32)


def _header(found: bytes) -> tuple[int, int]:
    try:
        info = _soundfile().info(io.BytesIO(found))
    except RuntimeError:
        return 0, 1  # told with its reason when the batch is made
    return int(info.frames), int(info.samplerate)


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise InputError(
            f"recordings are read by {failed_import('soundfile', error)}. Run: "
            f"{install_extra('audio')}"
        ) from None
    return soundfile


def audio_encoder(model: Model, layout: Layout, base: Path, names: frozenset[str]) -> AudioEncoder:
    """Return the encoder of recordings for a model.

    Raises
    ------
    InputError
        If nothing says how recordings become numbers.
    """
    extractor = model.processor
    name = model.name or "the model"
    if not is_feature_extractor(extractor):
        raise InputError(
            f"{name} does not say how to preprocess recordings (preprocessor_config.json). In "
            f"Python, pass processor= with its feature extractor; {FACTORY}."
        )
    if layout.target is not None:
        raise InputError(
            f"{name}: expected no target column, since targets of recordings cannot be read. "
            "Leave out target_column."
        )
    has_decoder = model.task == "seq2seq" and "decoder_input_ids" in names
    recipe = blake2b(extractor.to_json_string().encode(), digest_size=16).hexdigest()
    return AudioEncoder(
        extractor,
        layout.inputs[0],
        base,
        extractor.model_input_names[0],
        names,
        start_token(model) if has_decoder else None,
        dtype_of(model.module),
        origin={"processor": recipe},
    )
