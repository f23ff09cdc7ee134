"""Class and task of the model in a folder, known before its weights are read."""

from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.data._checkpoints import FACTORY_KEY, STAGES, config_dict
from sonde.data._model_kind import task_of_class
from sonde.data._quiet import quiet
from sonde.data.sentence_encoder import SentenceEncoder
from sonde.data.shipped import is_shipped, model_directory

LANGUAGE = ("causal", "seq2seq")


def require_task(model: Any, tasks: tuple[str, ...], expected: str) -> None:
    """Refuse a model whose folder already says that its task is another one.

    Nothing happens if the task is known only after loading: of a factory, a module or a name at
    the hub.

    Parameters
    ----------
    model : str, path, Model or module
        As a user names it.
    tasks : tuple of str
        Values of ``Model.task`` that are accepted.
    expected : str
        Start of the error, such as ``cache: expected a language model``.

    Raises
    ------
    InputError
        With the class and the task of the model.
    """
    kind = kind_of_folder(model)
    if kind is not None and kind[1] not in tasks:
        raise InputError(f"{expected}, got {kind[0].__name__} ({kind[1]}). Nothing was read.")


def kind_of_folder(model: Any) -> tuple[type, str] | None:
    """Return class and task of the model in a folder; None if only loading tells them."""
    if not isinstance(model, str | Path):
        return None
    folder = model_directory(str(model)) if is_shipped(str(model)) else Path(model).expanduser()
    folder = Path(folder)
    if (folder / STAGES).is_file():
        return SentenceEncoder, "encoder"
    if not (folder / "config.json").is_file():
        return None
    import transformers

    try:
        written = config_dict(folder)
        named, own_code = written.get("architectures"), written.get("auto_map")
        kind = getattr(transformers, named[0], None) if named else None
        if own_code or FACTORY_KEY in written or not isinstance(kind, type):
            return None
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder)
    except Exception:  # loading says what is wrong with the folder
        return None
    return kind, task_of_class(kind.__name__, config)
