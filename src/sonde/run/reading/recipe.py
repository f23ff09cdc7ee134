"""Recipe that turned items into model inputs: stored with a fitted state, reused for later data.

An unknown part, as in files of earlier versions and of plain arrays, counts as no difference.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from sonde.core.errors import SondeWarning, StateError
from sonde.core.stream import Stream
from sonde.data import kept_for
from sonde.data.inputs import ItemInputs
from sonde.engine.derived import innermost
from sonde.run.reading.read import ARRAYS
from sonde.tap import LiveStream
from sonde.tap.generating.replay import ReplayInputs

OPTIONS = (
    "image_size", "image_mean", "image_std", "max_length", "long", "span", "text_column",
    "image_column", "target_column", "ignore_columns", "number_columns", "classes", "generate",
)  # fmt: skip
PILLOW = "PillowProcessor("
CUTTING = ("max_length", "long", "span")
PLAIN = (str, int, float, bool, type(None))

Recipe = dict[str, Any]


def recipe_of(stream: Stream) -> Recipe:
    """Return the recipe that turned a stream's items into inputs, as JSON values.

    ``options`` are those of ``sonde.read`` that were given; ``pixels`` names the recipe of images,
    ``max_length``, ``long`` and ``span`` say how texts were cut, and ``generate`` what continued
    them. Plain arrays have none.
    """
    encoded = _encoded(stream.identity().get("data"))
    return {**encoded, "options": _options(stream)} if encoded else {}


def recipe_in(header: Mapping[str, Any]) -> Recipe:
    """Return the recipe in a header, or an empty recipe if the header has none."""
    recipe = header.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _encoded(data: Any) -> Recipe:
    """Return the recipe in the identity of data, or an empty recipe if the parts differ."""
    if not isinstance(data, Mapping):
        return {}
    if "appended" in data:
        first, *others = [_encoded(part) for part in data["appended"]]
        return first if all(other == first for other in others) else {}
    encoding = data.get("prompts", data).get("encoding")
    if encoding is None:
        return {}
    recipe: Recipe = {"generate": data.get("generate")}
    if encoding.get("kind") == "image":
        recipe["pixels"] = encoding.get("processor")
    if encoding.get("kind") == "numbers":
        recipe["columns"] = encoding.get("inputs")
    if "long" in encoding:
        recipe |= {name: encoding.get(name) for name in CUTTING}
    return recipe


def _options(stream: Stream) -> dict[str, Any]:
    """Return the options of ``sonde.read`` that opened a live stream."""
    live = innermost(stream)
    inputs = live.inputs if isinstance(live, LiveStream) else None
    options: dict[str, Any] = {}
    if isinstance(inputs, ReplayInputs):
        if all(isinstance(value, PLAIN) for value in inputs.generate.values()):
            options["generate"] = dict(inputs.generate)
        inputs = inputs.prompts
    return {**inputs.typed, **options} if isinstance(inputs, ItemInputs) else options


def columns_of(stream: Stream) -> dict[str, Any]:
    """Return the option that reads other tables of numbers in the column order of this table."""
    return {n: v for n, v in _options(stream).items() if n == "number_columns"}


def default_options(
    header: dict[str, Any], model: Any, data: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the reading options of a bundle that also apply to these data.

    Columns that the data do not have are left out. So are image options if a processor is given.
    """
    options = recipe_in(header).get("options")
    if not isinstance(options, dict) or (isinstance(model, str) and model == ARRAYS):
        return {}
    own = "processor" in given
    return kept_for(
        data,
        {
            name: value
            for name, value in options.items()
            if name in OPTIONS and name not in given and not (own and name.startswith("image_"))
        },
    )


def require_same_recipe(fitted: Recipe, here: Recipe, what: str = "score") -> None:
    """Raise if images were prepared differently than for a bundle; warn about other differences.

    Raises
    ------
    StateError
        With both recipes.
    """
    require_same_columns(fitted, here, what)
    names = [n for n in ("pixels", "generate", *CUTTING) if n in fitted and n in here]
    for name in (n for n in names if fitted[n] != here[n]):
        own, its = here[name], fitted[name]
        if name == "pixels" and all(str(v).startswith(PILLOW) for v in (own, its)):
            raise StateError(
                f"{what}: the state was fitted on images that were preprocessed differently: "
                f"{own} here, {its} in the fit. Leave image_size, image_mean and image_std "
                "out (--image-size --image-mean --image-std): they are taken from the state. "
                "Or fit again."
            )
        word = "the image processor " if name == "pixels" else f"{name}="
        warnings.warn(
            f"{what}: rows are read with {word}{own!r}, but the state was fitted with {its!r}: "
            "its p-values and thresholds hold only for rows that are read in the same way. "
            "Leave this option out, or calibrate again.",
            SondeWarning,
            stacklevel=4,
        )


def require_same_columns(fitted: Recipe, here: Recipe, what: str) -> None:
    """Raise if vectors come from other columns, or in another order.

    Raises
    ------
    StateError
        With both lists of columns.
    """
    its, own = fitted.get("columns"), here.get("columns")
    if its is not None and own is not None and its != own:
        raise StateError(
            f"{what}: expected rows of the columns of numbers {', '.join(its)}, as the state was "
            f"fitted, got {', '.join(own)}. Name them in that order: number_columns="
            f"(--number-columns {','.join(its)})."
        )


def common(a: Recipe, b: Recipe) -> Recipe:
    """Return the fields in which two recipes agree."""
    shared = {name: a[name] for name in a if name in b and a[name] == b[name]}
    own, its = a.get("options", {}), b.get("options", {})
    same = {name: own[name] for name in own if name in its and own[name] == its[name]}
    return {**shared, "options": same} if "options" in a and "options" in b else shared
