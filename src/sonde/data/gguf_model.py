"""Language models in GGUF files: opened by transformers, with the tokenizer of the file.

The weights are unpacked: to float32 if the file holds blocks of few bits, else to the file's type.
"""

import logging
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.wording import gib, install_extra, plural
from sonde.data._checkpoint_model import DTYPES, check_whole, model_class, usable_device
from sonde.data._model_kind import config_of, task_of
from sonde.data._quiet import quiet
from sonde.files.gguf import CONTROL_VECTOR, GGUFHeader

SUFFIX = ".gguf"
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_log = logging.getLogger("sonde")


def gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path names, itself or as a folder of one; None for others.

    Raises
    ------
    InputError
        If the folder holds several.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    if not files or any(path.glob("*.safetensors")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:6])
        raise InputError(
            f"load: {path} holds {plural(len(files), 'GGUF file')} ({names}). Pass the path of one."
        )
    return files[0]


def from_gguf(file: Path, device: str, dtype: str, processor: Any) -> Model:
    """Return the model of a GGUF file with its tokenizer and chat template.

    Parameters
    ----------
    file : Path
    device : str
    dtype : str
        ``auto`` keeps float32, float16 and bfloat16, and unpacks blocks to float32.
    processor : object
        Tokenizer in place of the file's own, or None.

    Raises
    ------
    InputError
        If the file is damaged, is one part of several, or transformers cannot open it.
    """
    header = GGUFHeader.read(file)
    _refuse(header, file, device)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    unpacked = dtype_of(header) if dtype == "auto" else DTYPES[dtype]
    from transformers import AutoConfig, AutoTokenizer

    with quiet(), redirect_stderr(StringIO()):  # its progress bar has no switch
        try:
            config = AutoConfig.from_pretrained(**where)
            kind = model_class(config, file, False)
            options = {"output_loading_info": True, "config": config, "dtype": unpacked}
            module, report = kind.from_pretrained(**where, **options)
            if processor is None:
                processor = AutoTokenizer.from_pretrained(**where)
        except InputError:
            raise
        except Exception as error:
            raise InputError(_cannot_open(header, file, error)) from error
    check_whole(report, kind.__name__, file)
    module.hf_quantizer = None  # the weights are floats: transformers may save and train them
    vars(module.config).pop("quantization_config", None)
    module.to(usable_device(device)).eval()
    _log.info("model %s: %s", file, described(header, unpacked))
    return Model(module, processor, config_of(module), str(file), task_of(module))


def save_unpacked(model: Model, folder: Path) -> None:
    """Write the model of a GGUF file as a folder that ``from_pretrained`` opens.

    Parameters
    ----------
    model : Model
        Result of ``from_gguf``.
    folder : Path
    """
    with quiet():
        model.module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        model.processor.save_pretrained(folder)


def described(header: GGUFHeader, dtype: torch.dtype) -> str:
    """Return the types of a file and the size of its model in memory.

    Parameters
    ----------
    header : GGUFHeader
    dtype : torch.dtype
        Type that the weights are unpacked to.
    """
    size = gib(header.n_values * dtype.itemsize)
    kinds = [kind for kind in header.type_counts() if kind not in _PLAIN] or [*header.type_counts()]
    return f"{', '.join(kinds)} of GGUF, read as {str(dtype).removeprefix('torch.')}, {size}"


def dtype_of(header: GGUFHeader) -> torch.dtype:
    """Return the half type of a file that holds plain numbers alone, else float32."""
    kinds = set(header.types.values())
    if not kinds <= _PLAIN.keys():
        return torch.float32
    return next((_PLAIN[kind] for kind in ("BF16", "F16") if kind in kinds), torch.float32)


def _refuse(header: GGUFHeader, file: Path, device: str) -> None:
    """Raise for files that are no whole model, and where packages are missing."""
    if header.architecture == CONTROL_VECTOR:
        raise InputError(
            f"load: {file} is a control vector, not a model. `sonde info {file}` prints what it "
            "holds; llama.cpp adds it to a model with --control-vector."
        )
    n_parts = header.facts.get("split.count", 1)
    if n_parts not in (0, 1):
        raise InputError(
            f"load: {file} is one of {n_parts} parts of a model. Join them first: llama-gguf-split "
            "--merge FIRST-PART WHOLE.gguf."
        )
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"load: {file} needs the package {missing[0]}. Run: {install_extra('gguf')}"
        )
    if device == "map":
        raise InputError(
            "load: device 'map' works for folders with safetensors, not for GGUF. Name one device."
        )


def _cannot_open(header: GGUFHeader, file: Path, error: Exception) -> str:
    import transformers

    kinds = ", ".join(header.type_counts())
    return (
        f"load: transformers {transformers.__version__} cannot open {file} (architecture "
        f"{header.architecture}, tensors {kinds}): {type(error).__name__}: {error} Take the model "
        "in safetensors, a GGUF file of another type such as Q8_0 or F16, or a newer transformers."
    )
