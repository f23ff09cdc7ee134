"""Check the contents of a model directory before anything in it is loaded."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, near, reason_of
from sonde.data.weight_files import about_programme

FACTORY = (
    "on the command line, name a factory that returns module and processor (package.module:factory)"
)
LIVE = (
    "Build it yourself: pass a live module in Python (sonde.read(module, ..., processor=...)); "
    f"{FACTORY}."
)
FACTORY_KEY = "factory"
"""What the configuration of a folder calls the function that makes its model."""
LAYERS_KEY = "inserted_layers"
"""What the configuration of a folder calls the hash of the layers that belong into its model."""
LAYERS_FOLDER = "inserted.layers"
"""The folder of these layers, inside the model's."""
STAGES = "modules.json"
"""Where sentence-transformers lists the stages of a model."""
GUARD_KEY = "fusion_config"
"""An option of every configuration whose unknown keys transformers refuses before it makes a model.

``transformers_weights`` would do, but ``save_pretrained`` leaves it out.
"""
NEEDS_SONDE = (
    "this model has packed weights or inserted layers, which sonde opens. Run `import sonde` "
    "before from_pretrained, or restore the original with `sonde compress undo`"
)
"""The key that transformers prints in its error."""
MAX_CONFIG_BYTES = 16 * 2**20
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MODEL_FILES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".py", ".onnx", ".safetensors")
DATA_FILES = (".npy", ".npz", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl", ".txt")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
HUB_LEFT_OUT = ("*/*", "consolidated*")

_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def checkpoint_directory(name: str, with_code: bool) -> Path:
    """Return the directory of ``name``, downloaded if it is a name on the hub.

    ``with_code`` fetches its Python files too; nothing is run.

    Raises
    ------
    InputError
        If there is no such directory and no such name, or what it holds cannot be loaded safely.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise InputError(_about_file(path))
    if path.suffix in MODEL_FILES and not path.exists():
        neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"load: no such file: {name}.{near(path.name, neighbours)}")
    if not path.is_dir():
        path = _fetch(name, with_code)
    _refuse(path, name)
    return path


def config_dict(directory: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model directory.

    Raises
    ------
    InputError
        If it is too large, or not a JSON object.
    """
    return json_object(directory / "config.json")


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file from outside."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(
            f"load: {path} is larger than {MAX_CONFIG_BYTES >> 20} MiB, so it is not a "
            "configuration."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"load: {path} is not valid JSON: {reason_of(error)}.") from None
    if not isinstance(content, dict):
        raise InputError(f"load: expected a JSON object in {path}, got {type(content).__name__}.")
    return content


def stages_of(path: Path) -> list[tuple[str, Path]]:
    """Return class and folder of each stage in ``modules.json``; empty without the file.

    Raises
    ------
    InputError
        If it is no list of stages, or a stage lies outside of the folder.
    """
    file = path / STAGES
    if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
        return []
    try:
        rows = sorted(json.loads(file.read_text(encoding="utf-8")), key=lambda row: row["idx"])
        listed = [(str(r["type"]).rpartition(".")[2], path / str(r["path"])) for r in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"load: {file} is not a list of stages: {error!r}. {LIVE}") from None
    top = path.resolve()
    for _, folder in listed:
        if top not in (folder.resolve(), *folder.resolve().parents):
            raise InputError(f"load: {file} names {folder}, which is outside of the folder.")
    return listed


def _about_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return (
            f"expected a model's folder, got the GGUF file {path}. Load it (sonde.load) and pass "
            "the model, or take the model in safetensors."
        )
    programme = about_programme(path)
    if programme is not None:
        return f"load: {programme}"
    if any(path.match(p) for p in (*PICKLES, "*.safetensors")):
        return (
            f"load: {path} holds weights, but not the module that they belong to. Name a factory "
            f"that makes the module: package.module:factory@{path}."
        )
    if path.suffix == ".py":
        return f"load: expected package.module:factory, got the file {path}. Add :FACTORY to it."
    if path.suffix in DATA_FILES:
        return (
            f"load: expected a model, got the data file {path}. The model comes first, then the "
            "data; if the file holds rows of features, pass - in place of the model."
        )
    return (
        f"load: expected a model directory, got the file {path}. Pass the directory that holds it."
    )


def _refuse(path: Path, name: str) -> None:
    if (path / "adapter_config.json").exists():
        raise InputError(
            f"load: {name} is an adapter without its model. Merge the adapter into the model, or "
            "pass a live module."
        )
    if (path / "model_index.json").exists():
        raise InputError(
            f"load: {name} is a diffusion pipeline, which cannot be loaded by name. {LIVE}"
        )
    if any(path.glob("*.gguf")) and not any(path.glob("*.safetensors")):
        raise InputError(_about_file(next(path.glob("*.gguf"))))
    stages = stages_of(path)
    path = stages[0][1] if stages else path
    if not (path / "config.json").exists():
        raise InputError(
            f"load: {name} has no config.json, so it is not a model directory. "
            f"It holds {_listing(path)}."
        )
    if not any(path.glob("*.safetensors")) and not has_state_dicts(path):
        pickles = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
        if pickles:
            raise InputError(
                f"load: {name} holds only pickled weights ({pickles[0]}), which can run any "
                "code when "
                "they are opened; they are not loaded. Save the model with save_pretrained "
                "(safetensors), or pass a live module."
            )
        raise InputError(
            f"load: {name} has no *.safetensors; it holds {_listing(path)}. "
            "Download it again with its weights, or save it by save_pretrained."
        )


def has_state_dicts(directory: Path) -> bool:
    """Return whether transformers wrote the weights as ``pytorch_model.bin``, whole or in parts.

    Such a file is opened with ``weights_only``, so that it can hold tensors alone.
    """
    return any(directory.glob("pytorch_model*.bin"))


def _listing(path: Path) -> str:
    names: Sequence[str] = sorted(p.name for p in path.iterdir())
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "nothing") + more


def _fetch(name: str, with_code: bool) -> Path:
    if not _HUB_NAME.match(name) or name in (".", ".."):
        raise InputError(f"load: no such model directory: {name}. Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = [*HUB_FILES, *(["*.py"] if with_code else [])]
    choice = {"allow_patterns": wanted, "ignore_patterns": list(HUB_LEFT_OUT)}
    try:
        snapshot = Path(snapshot_download(name, **choice))
        inside = [str(folder.relative_to(snapshot)) for _, folder in stages_of(snapshot)]
        below = [f"{folder}/{files}" for folder in inside if folder != "." for files in HUB_FILES]
        return Path(snapshot_download(name, allow_patterns=below)) if below else snapshot
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError):
        reason = "the hub cannot be reached"
    except Exception as error:
        reason = f"the hub does not provide it ({_first_line(error)})"
    raise InputError(
        f"load: no directory {name}, and {reason}. Pass the path of a model directory, "
        "or a name of a model that is in the local cache."
    ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
