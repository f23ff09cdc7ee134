"""``sonde recipe``: a question about your own models and data, answered by parts of sonde."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import say, say_json
from sonde.cli.options import (
    DeviceWord,
    ImageMean,
    ImageSize,
    ImageStd,
    PageWord,
    Printing,
    TrustFlag,
    image_numbers,
    named,
)
from sonde.cli.study import package_of
from sonde.core.errors import InputError

ENDINGS: Final = (".html", ".htm", ".json")
LEVELS: Final = ("warning", "error")
PROGRESS: Final = "progress"
WORDS: Final = (
    "A model is a Hugging Face directory or name, package.module:factory, sonde:digits or "
    "sonde:stdlib; data are an image folder, a JSONL, CSV or Parquet file, arrays, or a data set "
    "by name, e.g. sonde:digits/test."
)


@dataclass(frozen=True)
class Recipe:
    """Ask a question about your own models and data; without NAME the questions are listed.

    `sonde recipe NAME --help` lists the inputs of a recipe. Each recipe prints its answer as a
    sentence and a table, and writes a page with -o. `sonde study NAME` tries it on known data.

    Example: sonde recipe
    """

    name: Annotated[
        tyro.conf.Positional[str], named("[NAME]", "a recipe; what follows it are its own words")
    ] = ""
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """List the questions."""
        if self.name:
            raise InputError(
                f"recipe: expected the recipe first, got {self.name!r} after an option. Write "
                f"sonde recipe {self.name} ..."
            )
        package = package_of("recipe").recipes
        questions = {word: package.question_of(word) for word in package.RECIPES}
        if self.printing.json:
            say_json([{"name": word, "question": text} for word, text in questions.items()])
        else:
            wide = max(map(len, questions)) + 2
            say("\n".join(f"{word:<{wide}}{text}" for word, text in questions.items()))
        return 0


@dataclass(frozen=True)
class Asking:
    """Options that all recipes have."""

    output: PageWord = None
    fail_on: Annotated[
        Literal["warning", "error"] | None,
        named(
            "LEVEL",
            "exit with code 1 if the answer is a warning (or worse), or only if it is an error",
        ),
    ] = None
    device: DeviceWord = "auto"
    trust_remote_code: TrustFlag = False
    image_size: ImageSize = None
    image_mean: ImageMean = None
    image_std: ImageStd = None

    def model_options(self) -> dict[str, Any]:
        """Return the typed options as arguments of ``sonde.load``, with image preparation if given.

        Raises
        ------
        InputError
            If only a part of the recipe is typed.
        """
        options = {"device": self.device, "trust_remote_code": self.trust_remote_code}
        size, mean, std = image_numbers(self).values()
        if (size, mean, std) == (None, None, None):
            return options
        if mean is None or std is None:
            raise InputError(
                "--image-mean and --image-std: expected both or none of them, got one."
            )
        from sonde.data.processors import PillowProcessor

        pair = None if size is None else (size[0], size[-1])
        return options | {"processor": PillowProcessor(pair, mean=mean, std=std)}


def recipe_command(word: str) -> type[Any]:
    """Return the command of a recipe; its arguments are those of the recipe's function.

    Raises
    ------
    InputError
        If there is no such recipe.
    """
    function = package_of("recipe").recipes.recipe_of(word)
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function, include_extras=True)
    asked = [(p, _typed(p, hints[p.name])) for p in parameters.values() if p.name != PROGRESS]

    def run(self: Any) -> int:
        return _run(self, word, function)

    fields_of: list[Any] = [(p.name, kind) for p, kind in asked if p.default is p.empty]
    fields_of += [
        (p.name, k, field(default=p.default)) for p, k in asked if p.default is not p.empty
    ]
    fields_of += [
        (n, k, field(default_factory=k)) for n, k in (("asking", Asking), ("printing", Printing))
    ]
    namespace = {"run": run, "__doc__": _told(inspect.getdoc(function) or "")}
    return make_dataclass(function.__name__, fields_of, namespace=namespace, frozen=True)


def _told(doc: str) -> str:
    """Return a recipe's description, with the accepted forms of models and data."""
    what, parameters, rest = doc.partition("\n\nParameters\n")
    return f"{what}\n\n{WORDS}{parameters}{rest}"


def _typed(parameter: inspect.Parameter, hint: Any) -> Any:
    """Return an argument's command-line type: text for models and data, else its own."""
    if parameter.default is not parameter.empty:
        return str | None if _is_model(hint) or hint is Any else hint
    shown = tyro.conf.arg(metavar=parameter.name.upper(), help_behavior_hint="")
    return Annotated[tyro.conf.Positional[str], shown]


def _is_model(hint: Any) -> bool:
    from sonde.core.inputs import Model

    return Model in (hint, *get_args(hint))


def _run(command: Any, word: str, function: Callable[..., Any]) -> int:
    """Load the models, run the recipe, print and write."""
    from sonde.run.reading.load import load

    asking: Asking = command.asking
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    typed = {name: getattr(command, name) for name in parameters if name != PROGRESS}
    must = {n: typed[n] for n in typed if parameters[n].default is parameters[n].empty}
    check_page(asking.output, *must.values())
    options = asking.model_options()
    values = {
        name: load(value, **options) if _is_model(hints[name]) and value is not None else value
        for name, value in typed.items()
    }
    for name, value in values.items():  # names with commas, as everywhere else
        if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
            values[name] = tuple(value[0].split(","))
    if PROGRESS in parameters:
        values[PROGRESS] = not command.printing.quiet
    answer = function(**values).json(word, must)
    present(answer, command.printing, asking.output)
    reached = LEVELS[LEVELS.index(asking.fail_on) :] if asking.fail_on else ()
    return int(answer["level"] in reached)
