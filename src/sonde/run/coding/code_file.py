"""``sonde.encode_file`` and ``sonde.decode_file``: lossless compression by a language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.compress import SequenceCoder
from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError, no_file
from sonde.core.inputs import Model
from sonde.data.unloaded import require_task
from sonde.files.durable import atomic_write
from sonde.run.coding.coded_file import contents_of, file_of, read_contents, write_contents
from sonde.run.coding.sizes import model_bytes, plain_sizes
from sonde.run.reading.load import load

SUFFIX = ".coded"


@dataclass(frozen=True)
class CodedFile:
    """A file that was written, and the statistics that the command prints, as JSON."""

    output: Path
    document: dict[str, Any]

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Coded file", self.document)


def encode_file(
    file: str | Path,
    model: Any = "sonde:stdlib",
    output: str | Path | None = None,
    *,
    window: int | None = None,
    rows: int = 32,
    device: str = "auto",
    progress: bool = True,
) -> CodedFile:
    """Compress a file without loss by a language model that predicts it.

    The same as ``sonde encode``.

    Parameters
    ----------
    file : path
        Text file to encode, in UTF-8.
    model : str, path, Model or module, default="sonde:stdlib"
        A language model; ``decode_file`` needs the same one.
    output : path, optional
        By default the file's name with ``.coded``.
    window : int, optional
        Tokens that are read together; by default the context of the model.
    rows : int, default=32
        Windows that are read side by side.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    Raises
    ------
    InputError
        If the file is missing or empty, or the model is no language model.
    """
    path = Path(file)
    raw = _read(path)
    target = path.with_name(path.name + SUFFIX) if output is None else Path(output)
    _refuse_same(path, target)
    language_model = _language_model(model, device)
    coder = SequenceCoder(language_model, progress=progress, window=window, rows=rows)
    contents = contents_of(raw, language_model)
    coded = write_contents(contents, coder)
    atomic_write(target, coded)
    document = {
        "file": str(path),
        "output": str(target),
        "kind": contents.kind,
        "file_bytes": len(raw),
        "coded_bytes": len(coded),
        "n_tokens": len(contents.ids),
        "bits_per_token": 8 * len(coded) / max(1, len(contents.ids)),
        "plain_bytes": plain_sizes(raw, contents),
        "model": language_model.name,
        "model_bytes": model_bytes(language_model.module),
    }
    return CodedFile(target, document)


def decode_file(
    file: str | Path,
    model: Any = "sonde:stdlib",
    output: str | Path | None = None,
    *,
    device: str = "auto",
    progress: bool = True,
) -> CodedFile:
    """Restore the file that ``encode_file`` compressed; equal to ``sonde decode``.

    Parameters
    ----------
    file : path
        File that ``sonde.encode_file`` wrote.
    model : str, path, Model or module, default="sonde:stdlib"
        The model that coded it.
    output : path, optional
        By default the file's name without ``.coded``.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    Raises
    ------
    InputError
        If the file is missing, or was coded by another model or with other kernels.
    """
    path = Path(file)
    raw, target = _read(path), _decoded_path(path, output)
    language_model = _language_model(model, device)
    contents = read_contents(raw, SequenceCoder(language_model, progress=progress))
    decoded = file_of(contents, language_model)
    atomic_write(target, decoded)
    document = {"output": str(target), "kind": contents.kind, "file_bytes": len(decoded)}
    return CodedFile(target, document)


def _decoded_path(file: Path, output: str | Path | None) -> Path:
    if output is not None:
        _refuse_same(file, Path(output))
        return Path(output)
    if file.suffix != SUFFIX:
        raise InputError(
            f"sonde decode: {file} does not end in {SUFFIX}. Name the file to write: -o."
        )
    target = file.with_suffix("")
    if target.exists():
        raise InputError(f"sonde decode: {target} exists already. Name another file: -o.")
    return target


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{no_file(path)}. Pass an existing file.")
    if not (raw := path.read_bytes()):
        raise InputError(
            f"expected a file that is not empty, got 0 bytes in {path}. Pass another file."
        )
    return raw


def _refuse_same(file: Path, output: Path) -> None:
    if output.resolve() == file.resolve():
        raise InputError(f"-o: {output} is also the file to read. Name another file.")


def _language_model(word: Any, device: str) -> Model:
    require_task(word, ("causal",), "--model: expected a language model")
    model = load(word, device)
    if model.task != "causal":
        raise InputError(f"--model: expected a language model, got {model!r}.")
    return model
