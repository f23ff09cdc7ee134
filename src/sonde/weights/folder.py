"""Model folders: their weight files, and allowed paths for new folders."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from sonde.core.errors import InputError, StateError, StoreError
from sonde.core.inputs import Model
from sonde.data._checkpoints import (
    FACTORY_KEY,
    LAYERS_FOLDER,
    LAYERS_KEY,
    checkpoint_directory,
    json_object,
    stages_of,
)
from sonde.data.loading import folder_of_factory
from sonde.data.shipped import is_shipped, model_directory
from sonde.files.durable import TEMPORARY, make_directory, replace, sync_directory, write_error
from sonde.weights._weight_file import WeightFile, file_hash

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
PATCH = ".patch"
QUANTISED = "quantization_config"
OPENED_BY_SONDE: Mapping[str, Any] = {"quant_method": "sonde", "layers": {}}
"""What transformers reads to open a folder with sonde imported."""
PLAIN_FORMS = frozenset(("shapes", "numbers", "blocks", "linear", "first"))
"""Keys of forms whose tensors are stored as plain weights."""
OTHER_WEIGHTS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
    "*.safetensors",
)
"""Other copies of the weights: an edited model does not carry them."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model's folder.

    Parameters
    ----------
    path : Path
    weights : mapping of str to WeightFile
        The files that ``from_pretrained`` reads, by name.
    """

    path: Path
    weights: Mapping[str, WeightFile]

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """Return the folder with its weights opened.

        Raises
        ------
        InputError
            If it holds no model that can be changed on the disk.
        """
        stages = stages_of(path)
        if stages and stages[0][1].resolve() != path.resolve():
            raise InputError(
                f"{path}: the transformer lies in {stages[0][1].name}, where changes of a whole "
                "folder cannot be written. Open the model with sentence-transformers and save "
                "it again: it puts the transformer into the folder itself."
            )
        config = json_object(path / CONFIG) if (path / CONFIG).is_file() else {}
        _require_plain(path, config)
        if (path / WHOLE).is_file():
            names = [WHOLE]
        elif (path / INDEX).is_file():
            names = sorted(set(json_object(path / INDEX).get("weight_map", {}).values()))
        else:
            names = sorted(file.name for file in path.glob("*.safetensors"))[:2]
        if len(names) != 1 and not (path / INDEX).is_file():
            raise InputError(
                f"{path}: expected {WHOLE} or {INDEX}, got neither. If it holds pytorch_model.bin, "
                "open it with transformers and save it again by save_pretrained."
            )
        return cls(path, {name: WeightFile.open(path / name) for name in names})

    def plain(self) -> "ModelFolder":
        """Return this folder, for operations that cannot adapt inserted layers.

        Raises
        ------
        InputError
            If it holds inserted layers.
        """
        if (self.path / CONFIG).is_file() and LAYERS_KEY in self.config():
            raise InputError(
                f"{self.path} has inserted layers, which were trained for its current "
                "weights. Use the model without these layers (sonde edit undo), then train "
                "layers for the new model."
            )
        return self

    @cached_property
    def places(self) -> dict[str, str]:
        """The file of each tensor."""
        return {name: file for file, one in self.weights.items() for name in one.entries}

    @cached_property
    def files(self) -> tuple[str, ...]:
        """All files in the folder, including links, as paths with slashes."""
        every_file = (file for file in self.path.rglob("*") if file.is_file())
        return tuple(sorted(file.relative_to(self.path).as_posix() for file in every_file))

    @cached_property
    def _stages(self) -> frozenset[Path]:
        """The folders of stages after the transformer, which sentence-transformers reads."""
        return frozenset(p.relative_to(self.path) for _, p in stages_of(self.path)) - {Path()}

    def is_other_copy(self, file: str) -> bool:
        """Return whether a file may hold a copy of the weights in an unsupported format."""
        is_ours = file in self.weights or file.startswith(f"{LAYERS_FOLDER}/")
        is_ours = is_ours or (Path(file).parent in self._stages and file.endswith(".safetensors"))
        return not is_ours and any(map(Path(file).match, OTHER_WEIGHTS))

    def config(self) -> dict[str, Any]:
        """Return ``config.json``."""
        return json_object(self.path / CONFIG)

    @cached_property
    def forms(self) -> Mapping[str, Mapping[str, Any]]:
        """Shapes and blocks of a factory's model that its code does not say, by part."""
        config = self.config() if (self.path / CONFIG).is_file() else {}
        return config.get(QUANTISED, {}).get("layers", {})


def _require_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Raise if a folder stores weights in a form that cannot be changed.

    Layers of other shapes and shortened lists of blocks hold plain weights, which can be changed in
    the folder of a factory's model.

    Raises
    ------
    InputError
        Naming a layer and its form.
    """
    stored = config.get(QUANTISED, OPENED_BY_SONDE)
    if stored == OPENED_BY_SONDE:
        return
    layers = stored.get("layers", {}) if stored.get("quant_method") == "sonde" else {}
    packed = [name for name, form in layers.items() if not form.keys() <= PLAIN_FORMS]
    if layers and not packed and FACTORY_KEY in config:
        return
    back = f" (sonde compress undo {path} -o OLD)" if patch_of(path).is_dir() else ""
    if layers and not packed:
        raise InputError(
            f"{path}: the configuration of its class does not describe the shape of "
            f"{next(iter(layers))}, so the folder cannot be changed again. Change the original "
            f"model{back} in one step, or change this model in Python with RewritePlan.fold."
        )
    which = f"the weights of {packed[0]}" if packed else "its weights"
    raise InputError(
        f"{path}: {which} are quantised or packed, and cannot be changed. Take the original model "
        f"in float16, bfloat16 or float32{back}."
    )


def folder_of(model: Model | str | Path) -> Path:
    """Return the folder that a model was loaded from.

    Raises
    ------
    InputError
        If it comes from no folder.
    """
    name = model.name if isinstance(model, Model) else str(model)
    filled = folder_of_factory(name)
    if filled is not None:
        return filled
    if is_shipped(name):
        return model_directory(name)
    is_live = isinstance(model, Model) and name in ("", type(model.module).__name__)
    if is_live or (":" in name and not Path(name).exists()):
        raise InputError(
            "expected a model that was loaded from a folder: its files are copied. Load it with "
            "sonde.load, or fold the plan and save the new model yourself."
        )
    return checkpoint_directory(name, with_code=True)  # every file is copied, none is run


def weight_bytes(folder: Path) -> int:
    """Return the bytes of the weight files of a model's folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def patch_of(folder: Path) -> Path:
    """Return the path of an edited model's patch, which is beside the model."""
    folder = folder.absolute()
    return folder.with_name(folder.name + PATCH)


def check_output(output: Path, *sources: Path) -> None:
    """Raise if a folder is not empty, already has a patch, or lies inside a source.

    Raises
    ------
    InputError
        Naming what is there.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        kind = "a file" if output.is_file() else "not empty"
        raise InputError(f"cannot write {output}: it is {kind}. Name a new folder.")
    if patch_of(output).exists():
        raise InputError(
            f"cannot write {output}: {patch_of(output)} exists, the patch of another model "
            "with this name. Name another folder, or remove the patch."
        )
    whole = output.resolve()
    for source in sources:
        if source.resolve() in (whole, *whole.parents):
            raise InputError(
                f"cannot write {output}: it lies in {source}, the folder that is read. Name a "
                f"folder beside {source}."
            )
    if not output.absolute().parent.is_dir():
        raise StoreError(
            f"cannot write {output}: there is no folder {output.parent}. Create it first."
        )


@contextmanager
def removed_on_error(output: Path) -> Generator[None]:
    """Remove a new model and its patch if the block raises, for example after Ctrl-C."""
    try:
        yield
    except BaseException:
        for folder in (output, patch_of(output)):
            rmtree(folder, ignore_errors=True)
        raise


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise if a file of packed weights in a folder is damaged.

    Raises
    ------
    StateError
        Naming the file.
    """
    for file, digest in hashes.items():
        if file_hash(folder / file) != digest:
            raise StateError(
                f"load: {folder / file} differs from the file that was written with config.json: "
                "it was damaged or changed since. Copy the whole folder again, or compress the "
                "model again."
            )


@contextmanager
def new_folders(output: Path) -> Generator[tuple[Path, Path], None, None]:
    """Yield temporary folders for a model and its patch, renamed if the block does not raise.

    The patch is renamed first, so that an edited model never lacks its patch.
    """
    output = output.absolute()
    try:
        work = Path(mkdtemp(prefix=f"{output.name[:100]}{TEMPORARY}", dir=output.parent))
    except OSError as error:
        raise write_error(output, error) from error
    try:
        new, patch = work / "model", work / "patch"
        make_directory(new)
        yield new, patch
        if patch.exists():
            replace(patch, patch_of(output))
        if output.is_dir():
            output.rmdir()
        replace(new, output)
        sync_directory(output.parent)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise write_error(output, error) from error
    finally:
        rmtree(work, ignore_errors=True)


def as_json(value: Any) -> bytes:
    """Return a value as the JSON file that transformers would write."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
