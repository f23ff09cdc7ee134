"""The flags that commands share: dataclass fields, one group each, without prefixes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.core.errors import InputError
from sonde.files.places import to_path

if TYPE_CHECKING:
    from sonde.run.passes.crew import Crew


def named(metavar: str, help: str, *names: str) -> Any:
    """Define the help of an argument: without its type, or the default of an option."""
    return tyro.conf.arg(metavar=metavar, help=help, help_behavior_hint="", aliases=names or None)


ModelWord = Annotated[
    tyro.conf.Positional[str],
    named(
        "MODEL",
        "a Hugging Face directory or name, a GGUF file, package.module:factory, sonde:digits, "
        "sonde:stdlib, or - for feature arrays or a table alone",
    ),
]
DataWord = Annotated[
    tyro.conf.Positional[str],
    named(
        "DATA",
        "an image folder, a JSONL, CSV or Parquet file, arrays (.npz, .safetensors), or a "
        "data set by name, e.g. sonde:digits/test",
    ),
]
SourceWord = Annotated[
    tyro.conf.Positional[str],
    named(
        "MODEL",
        "a Hugging Face directory or name, a GGUF file, package.module:factory, sonde:digits, "
        "sonde:stdlib, - for feature arrays or a table alone, or a folder that sonde read wrote "
        "(then no DATA)",
    ),
]
SourceDataWord = Annotated[
    tyro.conf.Positional[str],
    named(
        "DATA",
        "an image folder, a JSONL, CSV or Parquet file, arrays (.npz, .safetensors), or a "
        "data set by name, e.g. sonde:digits/test; none with a folder of rows, or for weights",
    ),
]
ProbeWord = Annotated[
    tyro.conf.Positional[Path],
    named("PROBE", "a file that sonde fit wrote"),
]

MemoryWord = Annotated[
    str | None,
    named(
        "SIZE",
        "most memory to use for states, scores and rows not yet written; e.g. 8GiB (default: 80 "
        "percent of the free memory)",
    ),
]
EngineWord = Annotated[
    Literal["transformers", "vllm"],
    tyro.conf.arg(help="what runs a language model's tokens (docs: watch a model in vLLM)"),
]
DeviceWord = Annotated[
    str, tyro.conf.arg(help="auto, cpu, cuda, mps, or map (spread over devices)")
]
DtypeWord = Annotated[
    str, tyro.conf.arg(help="auto (as the config says), float32, bfloat16, float16")
]
TrustFlag = Annotated[
    bool, tyro.conf.arg(help="run code that comes with the checkpoint, for this call")
]
LongWord = Annotated[
    Literal["auto", "chunk", "truncate", "error"],
    tyro.conf.arg(
        help="what happens to texts longer than the context; auto: classifiers and embedding "
        "models truncate, others cut them into chunks"
    ),
]
MaxLength = Annotated[int | None, named("N", "largest number of tokens of one example")]
TextColumn = Annotated[str | None, named("NAME", "column of the text; a,b for pairs")]
ImageColumn = Annotated[str | None, named("NAME", "column of the image")]
LabelColumn = Annotated[
    str | None, named("NAME", "column of the label; a,b for several heads or labels")
]
NumberColumns = Annotated[
    str | None,
    named(
        "NAMES",
        "numeric columns that form one input vector, in this order: a,b",
        "--feature-columns",
    ),
]
ClassNames = Annotated[
    str | None,
    named(
        "NAMES",
        "class names of the classifier's outputs, in order: cat,dog or a file of names",
    ),
]
ImageSize = Annotated[
    str | None, named("H[,W]", "size in pixels to which images are resized, without a processor")
]
ImageMean = Annotated[
    str | None, named("M[,M,M]", "subtracted from pixels in 0..1; one per channel")
]
ImageStd = Annotated[str | None, named("S[,S,S]", "divisor of the pixels; one per channel")]
PageWord = Annotated[Path | None, named("FILE", "page to write: .html, or .json", "-o")]

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*$", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Parse a size such as ``8GiB``, ``500MB`` or ``4096`` into bytes.

    Examples
    --------
    >>> parse_bytes("2GiB"), parse_bytes("500 MB"), parse_bytes("4096")
    (2147483648, 500000000, 4096)

    Raises
    ------
    InputError
        If the text is no size above 0.
    """
    match = _SIZE.match(text)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"--memory: expected a size such as 8GiB or 500MB, got {text!r}.")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def memory_bytes(text: str | None) -> int | None:
    """Return ``--memory`` in bytes.

    Raises
    ------
    InputError
        If it is no size, or more than this machine has.
    """
    from sonde.run.passes.memory import check_limit

    limit = None if text is None else parse_bytes(text)
    check_limit(limit)
    return limit


def _numbers(flag: str, text: str | None, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
    """Parse the numbers of ``0.5`` or ``0.5,0.4,0.3``."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{flag}: expected {what} separated by commas, got {text!r}.") from None


@dataclass(frozen=True)
class DataReading:
    """Options for reading data, without the flags that choose states."""

    text_column: TextColumn = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    number_columns: NumberColumns = None
    classes: ClassNames = None
    max_length: MaxLength = None
    image_size: ImageSize = None
    image_mean: ImageMean = None
    image_std: ImageStd = None

    def data_options(self) -> dict[str, Any]:
        """Return the typed options as arguments of ``sonde.data.open_inputs``."""
        _check_classes(self.classes)
        names = (f.name for f in fields(DataReading))
        typed = {name: getattr(self, name) for name in names} | image_numbers(self)
        return {name: value for name, value in typed.items() if value is not None}


def _check_classes(classes: str | None) -> None:
    """Raise if a file of class names is missing or holds no name, before a model is loaded."""
    if classes is not None:
        from sonde.data.opening import names_of_classes

        names_of_classes(classes)


def image_numbers(typed: Any) -> dict[str, tuple[Any, ...] | None]:
    """Return size, mean and standard deviation of ``--image-size`` and its siblings as numbers."""
    return {
        "image_size": _numbers("--image-size", typed.image_size, int),
        "image_mean": _numbers("--image-mean", typed.image_mean, float),
        "image_std": _numbers("--image-std", typed.image_std, float),
    }


@dataclass(frozen=True)
class Reading:
    """Options for reading the model and the data."""

    sites: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="PATTERN ...", help="patterns such as 'layers.*.mlp' or 'blocks'"),
    ] = ("auto",)
    reducer: Annotated[
        str,
        tyro.conf.arg(
            help="mean, last, cls, tokens, predictions, patches, patches3, positions, flat, auto; "
            "mean(axis=2): axis 2 holds the features"
        ),
    ] = "auto"
    axes: Annotated[
        tuple[str, ...],
        named(
            "'[PATTERN=]WORDS' ...",
            "meaning of the axes, if sonde asks: 'row patch dim' (dim: features)",
        ),
    ] = ()
    engine: EngineWord = "transformers"
    device: DeviceWord = "auto"
    dtype: DtypeWord = "auto"
    batch_size: Annotated[str, tyro.conf.arg(help="examples in one forward pass")] = "auto"
    limit: Annotated[
        int | None,
        named("N", "read N examples: with labels a sample of all classes, else the first N"),
    ] = None
    max_length: MaxLength = None
    long: LongWord = "auto"
    text_column: TextColumn = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    id_column: Annotated[str | None, named("NAME", "column of the id")] = None
    group_column: Annotated[
        str | None, named("NAME", "column of the group (document, person, trajectory)")
    ] = None
    target_column: Annotated[
        str | None, named("NAME", "column that the decoder of an encoder-decoder model reads")
    ] = None
    logits: Annotated[
        str | None, named("OUTPUT", "which output of the model holds its logits: a name, or 0, 1")
    ] = None
    ignore_columns: Annotated[
        str | None,
        named("NAMES", "columns that are not inputs: a,b", "--ignore-column"),
    ] = None
    number_columns: NumberColumns = None
    classes: ClassNames = None
    span: Annotated[
        str | None,
        named("START,END", "part of each text: columns 'start,end' or '<think>,</think>'"),
    ] = None
    generate: Annotated[
        str | None,
        named("NAME=VALUE,...", "continue prompts: max_new_tokens=128,num_beams=4"),
    ] = None
    image_size: ImageSize = None
    image_mean: ImageMean = None
    image_std: ImageStd = None
    keep_special: Annotated[
        bool, tyro.conf.arg(help="include special tokens in the reducers tokens and mean")
    ] = False
    sinks: Annotated[
        str,
        named("ROLES", "tokens with massive states, left out: auto, keep, first, special"),
    ] = "auto"
    skip_bad: Annotated[bool, tyro.conf.arg(help="skip unreadable items and count them")] = False
    trust_remote_code: TrustFlag = False
    seed: Annotated[int, tyro.conf.arg(help="seed of the hash that samples and splits rows")] = 0
    no_check: Annotated[
        bool,
        tyro.conf.arg(
            help="skip the two short forward passes that test whether rows depend on their batch"
        ),
    ] = False

    def check(self, *words: str) -> None:
        """Raise if data or columns do not exist, before a model is loaded."""
        from sonde.data import check_data

        self.data_options()
        names = ("text", "image", "label", "id", "group", "target")
        columns = [getattr(self, f"{name}_column") for name in names]
        for word in words:
            check_data(word, columns, self.skip_bad)

    def model_options(self) -> dict[str, Any]:
        """Return the typed options as arguments of ``sonde.load``, without the engine.

        Raises
        ------
        InputError
            If an engine is typed: commands that take these options alone run transformers.
        """
        if self.engine != "transformers":
            raise InputError(
                f"--engine {self.engine}: this command needs transformers itself. Leave --engine "
                "out; sonde read, fit, score, calibrate, scan and generate take it."
            )
        return self._load_options()

    def load_options(self) -> dict[str, Any]:
        """Return the typed options as arguments of ``sonde.load``."""
        typed = {} if self.engine == "transformers" else {"engine": self.engine}
        return self._load_options() | typed

    def _load_options(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
        }

    def data_options(self) -> dict[str, Any]:
        """Return the options about data as arguments of ``sonde.read``."""
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit: expected at least 1, got {self.limit}.")
        _check_classes(self.classes)
        size = self.batch_size
        if size != "auto" and (not size.isdigit() or int(size) < 1):
            raise InputError(
                f"--batch-size: expected auto or a number of at least 1, got {size!r}."
            )
        if self.generate is not None:
            from sonde.tap.generating.settings import parse_settings

            parse_settings(self.generate)
        names = (
            "limit",
            "max_length",
            "long",
            "text_column",
            "image_column",
            "label_column",
            "id_column",
            "group_column",
            "target_column",
            "ignore_columns",
            "number_columns",
            "classes",
            "span",
            "generate",
            "skip_bad",
            "keep_special",
            "seed",
        )
        return {
            **{name: getattr(self, name) for name in names},
            **({} if self.logits is None else {"logits": self.logits}),
            "batch_size": size if size == "auto" else int(size),
            **image_numbers(self),
            **({"check": False} if self.no_check else {}),
            **({} if self.sinks == "auto" else {"sinks": self.sinks}),
        }

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", listed(self.sites))

    def typed(self) -> dict[str, Any]:
        """Return the flags that differ from their defaults."""
        return {
            f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default
        }

    def site_options(self) -> dict[str, Any]:
        """Return the options about sites as arguments of ``sonde.read``."""
        sites = self.sites[0] if len(self.sites) == 1 else list(self.sites)
        return {"sites": sites, "reducer": self.reducer, "axes": self.axes}


def listed(words: Sequence[str]) -> tuple[str, ...]:
    """Split a list typed with spaces, commas or both.

    Commas inside brackets belong to the member.

    Examples
    --------
    >>> listed(("quest(page=8,sinks=2),h2o",))
    ('quest(page=8,sinks=2)', 'h2o')
    >>> listed(("layers.0,layers.2", "head"))
    ('layers.0', 'layers.2', 'head')
    """
    return tuple(part for word in words for part in re.split(r",(?![^(]*\))", word) if part)


def source_of(command: str, model: str, data: str, reading: Reading) -> tuple[Any, str | None]:
    """Return the source of rows: a loaded model and its data, or the folder of a store.

    Raises
    ------
    InputError
        If data are missing or do not exist, or a flag that only a model takes is typed for a store.
    """
    from sonde.run.reading.load import load
    from sonde.run.reading.read import ARRAYS, reads_weights
    from sonde.store import is_store

    if is_store(to_path(model)):
        typed = [name for name, v in reading.load_options().items() if v not in ("auto", False)]
        if typed:
            flag = typed[0].replace("_", "-")
            raise InputError(f"--{flag}: {model} is a store of rows; no model is loaded for it.")
        return model, data or None
    if not data and reads_weights(reading.sites):
        return load(model, **reading.load_options()), None
    if not data:
        raise InputError(f"sonde {command}: expected DATA. See sonde {command} --help.")
    reading.check(data)
    return (model if model == ARRAYS else load(model, **reading.load_options())), data


@dataclass(frozen=True)
class Workers:
    """Options for workers."""

    workers: Annotated[
        int,
        tyro.conf.arg(
            help="processes, or actors on Ray (0: as many as fit); the result does not depend "
            "on the number"
        ),
    ] = 0
    threads: Annotated[int | None, named("N", "threads of each worker")] = None
    runner: Annotated[
        Literal["local", "ray"],
        tyro.conf.arg(help="workers: local processes, or a Ray cluster"),
    ] = "local"
    address: Annotated[
        str | None,
        named(
            "HOST:PORT",
            "address of a running Ray cluster, or auto; by default a local cluster is started",
        ),
    ] = None
    memory: MemoryWord = None

    def crew(self) -> "Crew":
        """Return the workers; raise if flags contradict each other or Ray is not installed."""
        from sonde.run.passes.crew import Crew
        from sonde.run.passes.hand_out import check_crew

        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads: expected at least 1, got {self.threads}.")
        crew = Crew(self.workers, self.runner, self.address)
        check_crew(crew)
        return crew

    def memory_bytes(self) -> int | None:
        """Return ``--memory`` in bytes; raise if this machine has less."""
        return memory_bytes(self.memory)

    def worker_options(self) -> dict[str, Any]:
        """Return the options about workers as arguments of ``sonde.fit``."""
        return {name: getattr(self, name) for name in ("workers", "threads", "runner", "address")}


@dataclass(frozen=True)
class RunFlags(Workers):
    """Options for committing and resuming a run."""

    unit_size: Annotated[
        int, tyro.conf.arg(help="number of examples that are committed together")
    ] = 256
    resume: Annotated[
        bool,
        tyro.conf.arg(
            help="fail if there is no interrupted run; without this flag, the same command "
            "also resumes a run"
        ),
    ] = False
    fresh: Annotated[
        bool, tyro.conf.arg(help="delete the files that another run left beside the output")
    ] = False

    def check(self, directory: Path | None, started: str = "plan.json") -> None:
        """Raise for invalid numbers, and for ``--resume`` if there is nothing to resume.

        Raises
        ------
        InputError
            With what is wrong.
        """
        self.crew()
        self.memory_bytes()
        if self.unit_size < 1:
            raise InputError(f"--unit-size: expected at least 1, got {self.unit_size}.")
        if self.resume and (directory is None or not (directory / started).exists()):
            raise InputError(f"--resume: there is nothing to resume at {directory}.")


EstimateFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="run the command on a few examples only, and print what all of the data will take: "
        "time, memory and disk space"
    ),
]


def say_estimate(printing: "Printing", job: Any, stream: Any, **options: Any) -> int:
    """Print the estimate of a job, and return the exit code."""
    from sonde.cli.console import say, say_json
    from sonde.report.estimating import estimate

    estimated = estimate(job, stream, **options)
    if printing.json:
        say_json(estimated.document)
    else:
        say(str(estimated))
    return 0


@dataclass(frozen=True)
class Printing:
    """Options for printing."""

    json: Annotated[bool, tyro.conf.arg(help="print everything as JSON")] = False
    quiet: Annotated[bool, tyro.conf.arg(help="print only the last line")] = False
    verbose: Annotated[
        bool,
        tyro.conf.arg(aliases=["-v"], help="print more details, such as the data that are read"),
    ] = False
    no_color: Annotated[bool, tyro.conf.arg(help="print without colour (also NO_COLOR)")] = False
    debug: Annotated[bool, tyro.conf.arg(help="show tracebacks and the log")] = False
