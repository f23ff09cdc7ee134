"""The checker of annotations under pytest: beartype, with whole numbers accepted as floats.

jaxtyping's wrapper binds the arguments of every call anew to compare sizes among them. It is put
around what has an array in its signature alone, and beartype around all else: a quarter less time.
"""

import inspect
import typing
from typing import Any, Literal

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_compares_sizes = jaxtyping.jaxtyped


def install() -> None:
    """Check every function and dataclass of sonde that is imported from now on."""
    jaxtyping.jaxtyped = _decorator
    jaxtyping.install_import_hook("sonde", "shape_checker.check")


def _decorator(*context: str, typechecker: Any = None) -> Any:
    if context:
        return _compares_sizes(*context)
    compares_sizes = _compares_sizes(typechecker=typechecker)

    def decorate(found: Any) -> Any:
        if inspect.isclass(found) or any(map(_has_array, found.__annotations__.values())):
            return compares_sizes(found)
        return found if "<locals>" in found.__qualname__ else typechecker(found)

    return decorate


def _has_array(annotation: Any) -> bool:
    """Return whether an annotation names an array with its sizes; texts may."""
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    if typing.get_origin(annotation) is Literal:
        return False
    inside = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(map(_has_array, inside))
