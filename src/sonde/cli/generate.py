"""``sonde generate``: text of a model, plain, steered, or with another decoding rule."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli.console import note, say_json
from sonde.cli.options import DeviceWord, DtypeWord, EngineWord, Printing, TrustFlag, named
from sonde.core.errors import InputError, no_file, reason_of

FILES = frozenset({".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"})
LONGEST = 255
"""Bytes of the longest name of a file; a longer word is a prompt."""
INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Generate:
    """Continue prompts and print the text as it is generated, to try an edit or a decoding rule.

    --steer adds a fitted direction to the states, from any file of sonde fit whose result makes an
    edit. --feature sets features of a dictionary (--dictionary). --decode changes the choice of the
    next token: contrastive subtracts a worse model or an early layer (--amateur), dola subtracts
    the block of the lower half that differs most, emulated adds the change that fine-tuning made to
    a small model (--tuned, --untuned).

    Example: sonde generate sonde:stdlib "def read(path):" --max-new-tokens 40

    Against an early layer: sonde generate sonde:stdlib "import " --decode contrastive --amateur 3
    """

    model: Annotated[
        tyro.conf.Positional[str],
        named(
            "MODEL",
            "a Hugging Face directory or name, a GGUF file, package.module:factory, or "
            "sonde:stdlib",
        ),
    ]
    prompts: Annotated[
        tyro.conf.Positional[str],
        named("PROMPTS", "a text, or a file: .txt (a prompt on each line), .jsonl, .csv, .parquet"),
    ]
    steer: Annotated[
        Path | None,
        named(
            "FILE.sonde",
            (
                "a file that sonde fit wrote, with a result that can change states, such as a "
                "direction"
            ),
        ),
    ] = None
    strength: Annotated[
        float,
        tyro.conf.arg(
            help="strength of --steer; 0 changes nothing, below 0 steers in the opposite direction"
        ),
    ] = 1.0
    where: Annotated[
        str, tyro.conf.arg(help="tokens that are steered: all, prompt, generated or last")
    ] = "all"
    method: Annotated[
        str | None, named("WORD", "method of the file, if the file holds several")
    ] = None
    site: Annotated[str | None, named("SITE", "site at which the direction was fitted")] = None
    act_at: Annotated[
        tuple[str, ...], named("PATTERN ...", "sites to steer; by default the sites of the fit")
    ] = ()
    dictionary: Annotated[
        Path | None,
        named(
            "FILE", "a dictionary: a file of sonde fit, a safetensors file, or a folder of SAELens"
        ),
    ] = None
    feature: Annotated[
        tuple[str, ...], named("N=VALUE ...", "features of --dictionary and their new values")
    ] = ()
    decode: Annotated[
        Literal["contrastive", "dola", "emulated"] | None,
        named("contrastive|dola|emulated", "rule for the next token"),
    ] = None
    amateur: Annotated[
        str | None,
        named("MODEL|LAYER", "model, or early layer, that contrastive decoding subtracts"),
    ] = None
    tuned: Annotated[str | None, named("MODEL", "small tuned model of emulated tuning")] = None
    untuned: Annotated[str | None, named("MODEL", "the same small model before its tuning")] = None
    decode_strength: Annotated[
        float | None, named("X", "strength of --decode; the method page gives the default")
    ] = None
    max_new_tokens: Annotated[int, tyro.conf.arg(help="largest number of tokens of one answer")] = (
        64
    )
    sample: Annotated[
        bool, tyro.conf.arg(help="sample tokens instead of taking the most likely one")
    ] = False
    temperature: Annotated[
        float, tyro.conf.arg(help="temperature of --sample; low values are close to greedy")
    ] = 1.0
    seed: Annotated[int, tyro.conf.arg(help="seed of --sample")] = 0
    text_column: Annotated[str | None, named("NAME", "column of the prompts in a table")] = None
    engine: EngineWord = "transformers"
    device: DeviceWord = "auto"
    dtype: DtypeWord = "auto"
    trust_remote_code: TrustFlag = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Load, steer, generate, and print each text during generation."""
        self._check()
        texts = prompts_of(self.prompts, self.text_column)
        self._check_models()
        model = self._load(self.model, self.engine)
        if not callable(getattr(model.module, "generate", None)) or model.processor is None:
            raise InputError(f"sonde generate: expected a model of texts, got {model!r}.")
        steering, how_steered = self._steering(model)
        rule = self._rule(model)
        answers: list[dict[str, str]] = []
        with steering, nullcontext() if rule is None else rule.bind(model) as processor:
            if not self.printing.quiet and (how_steered or rule is not None):
                how = rule and f"next tokens by {self.decode} decoding"
                note(f"note: {'; '.join(filter(None, [how_steered, how]))}")
            for text in texts:
                answers.append({"prompt": text, "text": self._answer(model, processor, text)})
        if self.printing.json:
            say_json(answers)
        return 0

    def _check(self) -> None:
        """Raise for invalid numbers and contradictory flags, before a model is loaded."""
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens: expected at least 1, got {self.max_new_tokens}.")
        if self.temperature <= 0:
            raise InputError(f"--temperature: expected more than 0, got {self.temperature:g}.")
        if self.where not in ("all", "prompt", "generated", "last"):
            raise InputError(
                f"--where: expected all, prompt, generated or last, got {self.where!r}."
            )
        needs = {"contrastive": ("amateur",), "emulated": ("tuned", "untuned")}
        needed = needs.get(self.decode or "", ())
        for name in ("amateur", "tuned", "untuned"):
            given = getattr(self, name) is not None
            if given != (name in needed):
                rule = next(rule for rule, flags in needs.items() if name in flags)
                verb = "missing with" if name in needed else "needs"
                raise InputError(f"--{name}: {verb} --decode {rule}.")
        if (self.dictionary is None) != (not self.feature) or (self.dictionary and self.steer):
            raise InputError(
                "--dictionary: expected --feature N=VALUE with it, and no --steer beside it."
            )
        if self.dictionary is None and self.steer is None:
            steered = ("strength", "where", "method", "site", "act_at")
            for each in fields(self):
                if each.name in steered and getattr(self, each.name) != each.default:
                    flag = each.name.replace("_", "-")
                    raise InputError(f"--{flag}: needs --steer or --dictionary.")
        if self.decode_strength is not None and self.decode is None:
            raise InputError("--decode-strength: needs --decode.")
        if self.decode is not None and self.engine != "transformers":
            raise InputError(
                f"--decode: expected no --engine {self.engine}, whose next tokens sonde does not "
                "choose. Leave --engine out."
            )

    def _check_models(self) -> None:
        """Refuse folders of models that generate no text, before weights are read."""
        from sonde.data.unloaded import kind_of_folder

        for word in filter(None, (self.model, self.amateur, self.tuned, self.untuned)):
            kind, task = kind_of_folder(word) or (None, "")
            if kind is not None and not hasattr(kind, "generate"):
                raise InputError(
                    f"sonde generate: expected a model of texts that has generate(), got "
                    f"{kind.__name__} ({task}) in {word}."
                )

    def _load(self, word: str, engine: str = "transformers") -> Any:
        from sonde.run.reading.load import load

        return load(word, self.device, self.dtype, self.trust_remote_code, engine=engine)

    def _steering(self, model: Any) -> tuple[AbstractContextManager[None], str]:
        """Return a context manager that steers the model, and a line about it."""
        if self.dictionary is not None:
            return self._setting(model, self.dictionary)
        if self.steer is None:
            return nullcontext(), ""
        from sonde.run.fitting.fitted import Fitted
        from sonde.run.fitting.live_model import require_model_of
        from sonde.tap import editing

        fitted = Fitted.load(self.steer)
        require_model_of(fitted.header, model, "--steer", self.steer)
        (word, site), result = self._chosen(fitted)
        where: Any = self.where
        sites = list(self.act_at) or [site]
        words = f"{word} of {site}, strength {self.strength:g}, at {', '.join(sites)}"
        return editing(model, result.edit(self.strength), sites, where), words

    def _setting(self, model: Any, path: Path) -> tuple[AbstractContextManager[None], str]:
        """Return a context manager that sets dictionary features, and a line about it."""
        from sonde.run.explaining.dictionaries import open_dictionary, parse_features
        from sonde.tap import editing

        dictionary, site = open_dictionary(path, model, self.site)
        sites = list(self.act_at) or [site]
        if not sites[0]:
            raise InputError(
                f"--dictionary: {path} was fitted at a site that this model does not have. Name a "
                "site with --act-at."
            )
        edit = dictionary.edit(self.strength, features=parse_features(self.feature))
        where: Any = self.where
        words = f"{', '.join(self.feature)} of {path.name} at {', '.join(sites)}"
        return editing(model, edit, sites, where), words

    def _chosen(self, fitted: Any) -> Any:
        """Return the only result with an edit that fits --method and --site, with its key."""
        fitting = [
            (key, result)
            for key, result in fitted
            if callable(getattr(result, "edit", None))
            and self.method in (None, key[0])
            and (self.site is None or _outputs(self.site) == _outputs(key[1]))
        ]
        if len(fitting) == 1:
            return fitting[0]
        names = ", ".join(f"{word} at {site}" for word, site in fitted.names)
        what = "several" if fitting else "none"
        raise InputError(
            f"--steer: expected one result that can change states, got {what} in {self.steer}: "
            f"{names}." + (" Choose by --method and --site." if fitting else "")
        )

    def _rule(self, model: Any) -> Any:
        """Return the decoding rule for the next token, or None."""
        from sonde.edit import ContrastiveDecode, DoLa, EmulatedFinetune
        from sonde.tap.decoding.layers import ModelBlocks

        how: dict[str, Any] = (
            {} if self.decode_strength is None else {"strength": self.decode_strength}
        )
        if self.decode == "contrastive":
            amateur = str(self.amateur)
            is_layer = amateur.removeprefix("-").isdigit()
            return ContrastiveDecode(int(amateur) if is_layer else self._load(amateur), **how)
        if self.decode == "dola":
            n = len(ModelBlocks(model.module).paths)
            return DoLa(tuple(range(0, max(1, n // 2), 2)), **how)
        if self.decode == "emulated":
            tuned, untuned = self._load(str(self.tuned)), self._load(str(self.untuned))
            return EmulatedFinetune(tuned, untuned, **how)
        return None

    def _answer(self, model: Any, processor: Any, text: str) -> str:
        """Return the model's continuation of a prompt; without ``--json`` print it as it comes."""
        import torch

        from sonde.tap import placement
        from sonde.tap.hooks.holding import in_eval

        tokens = model.processor(text, return_tensors="pt")
        given = {n: tokens[n].to(placement(model.module)[0]) for n in INPUTS if n in tokens}
        ids = given["input_ids"]
        if ids.shape[1] == 0:
            raise InputError("sonde generate: expected a prompt of at least one token, got none.")
        sampled = {"temperature": self.temperature} if self.sample else {}
        torch.manual_seed(self.seed)
        with in_eval(model.module):
            out = model.module.generate(
                **given,
                **sampled,
                do_sample=self.sample,
                max_new_tokens=self._room(model, ids.shape[1]),
                logits_processor=[] if processor is None else [processor],
                streamer=None if self.printing.json else streamer(model.processor),
            )
        return str(model.processor.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    def _room(self, model: Any, n_prompt: int) -> int:
        """Return how many tokens to generate, limited by the model's positions."""
        from sonde.core.model_config import is_encoder_decoder
        from sonde.data.text_encoding import context_of

        context = None if is_encoder_decoder(model.config) else context_of(model)
        if context is None or n_prompt + self.max_new_tokens <= context:
            return self.max_new_tokens
        if n_prompt >= context:
            raise InputError(
                f"sonde generate: expected a prompt of fewer than {context} tokens, the most that "
                f"this model reads, got {n_prompt}. Shorten it."
            )
        room = context - n_prompt
        note(f"note: the model reads at most {context} tokens: at most {room} are generated.")
        return room


def streamer(tokenizer: Any) -> Any:
    """Return a streamer for ``generate`` that prints words as they are generated."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            sys.stdout.write(text + "\n" * stream_end)
            sys.stdout.flush()

    return Streamer(tokenizer, skip_special_tokens=True)


def prompts_of(word: str, column: str | None) -> list[str]:
    """Return the prompts: those of a file, or the typed text itself.

    Raises
    ------
    InputError
        If a file is not there, or holds no texts.
    """
    path = Path(word)
    suffix = path.suffix.lower()
    if any(letter.isspace() for letter in word):
        return [word]
    if suffix not in FILES:
        if suffix and len(word) < LONGEST and path.is_file():
            raise InputError(
                f"sonde generate: expected a text, or a file {', '.join(sorted(FILES))}, got the "
                f"file {word}. Rename it, or pass the prompt itself."
            )
        return [word]
    if not path.is_file():
        raise InputError(f"sonde generate: {no_file(path)}. Pass a text, or an existing file.")
    if suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(
                f"sonde generate: {path} cannot be read: {reason_of(error)}."
            ) from None
        prompts = [line for line in lines if line.strip()]
    else:
        from sonde.data.opening import open_file

        prompts = [_prompt_of(row, column, path) for row in open_file(path).rows()]
    if not prompts:
        raise InputError(f"sonde generate: {word} holds no prompt.")
    return prompts


def _prompt_of(row: Any, column: str | None, path: Path) -> str:
    """Return the prompt of one row of a table."""
    from sonde.data.columns import TEXT_NAMES

    names = [column] if column is not None else [n for n in TEXT_NAMES if n in row]
    value = row.get(names[0]) if names else None
    if isinstance(value, str):
        return value
    columns = ", ".join(map(str, row))
    raise InputError(
        f"{path}: expected a text in column {column or 'text'}, got columns {columns}. "
        "Name it by --text-column."
    )


def _outputs(site: str) -> str:
    """Return a site's text without the port ``out``, which is the default."""
    return site.removesuffix(":out")
