"""``sonde encode`` and ``sonde decode``: lossless compression of files with a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli.console import say, say_json
from sonde.cli.options import Printing, named

ModelFlag = Annotated[
    str,
    named(
        "MODEL", "a Hugging Face directory, name or GGUF file of a language model, or sonde:stdlib"
    ),
]


@dataclass(frozen=True)
class Encode:
    """Compress a file without loss, with a language model that predicts it.

    The better the model predicts the text, the smaller the file. sonde decode needs the same model,
    the same versions of torch and transformers, and a processor with the same kernels; it checks
    all of them. A byte-level model can code every file, and images by their pixels.

    Example: sonde encode notes.txt --model sonde:stdlib
    """

    file: Annotated[tyro.conf.Positional[Path], named("FILE", "the file to encode")]
    model: ModelFlag = "sonde:stdlib"
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            aliases=["-o"],
            metavar="FILE",
            help="file to write (default: FILE.coded)",
            help_behavior_hint="",
        ),
    ] = None
    window: Annotated[
        int | None,
        named("N", "tokens per window (default: the context of the model)"),
    ] = None
    rows: Annotated[int, tyro.conf.arg(help="windows that are processed in parallel")] = 32
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Encode, write, and print the size beside that of general-purpose compressors."""
        from sonde.run.coding.code_file import encode_file

        document = encode_file(
            self.file,
            self.model,
            self.output,
            window=self.window,
            rows=self.rows,
            device=self.device,
            progress=not self.printing.quiet,
        ).document
        if self.printing.json:
            say_json(document)
        else:
            say(_told(document, quiet=self.printing.quiet))
        return 0


@dataclass(frozen=True)
class Decode:
    """Restore the file that sonde encode compressed.

    Images are restored as PNG with the same pixels, all other files byte for byte.

    Example: sonde decode notes.txt.coded --model sonde:stdlib -o notes.txt
    """

    file: Annotated[tyro.conf.Positional[Path], named("FILE", "a file that sonde encode wrote")]
    model: ModelFlag = "sonde:stdlib"
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            aliases=["-o"],
            metavar="FILE",
            help="file to write (default: FILE without .coded)",
            help_behavior_hint="",
        ),
    ] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Decode and write."""
        from sonde.run.coding.code_file import decode_file

        shown = not self.printing.quiet
        decoded = decode_file(
            self.file, self.model, self.output, device=self.device, progress=shown
        )
        if self.printing.json:
            say_json(decoded.document)
        else:
            say(f"{decoded.output}: {decoded.document['file_bytes']:,} bytes")
        return 0


def _told(document: dict[str, Any], *, quiet: bool) -> str:
    """Describe the sizes of the coded file and plain coders, and when the model pays off."""
    size, coded, plain = (document[name] for name in ("file_bytes", "coded_bytes", "plain_bytes"))
    share = f", {coded / size:.0%} of the file" if size else ""
    unit = {"bytes": "byte", "text": "token", "picture": "value"}[document["kind"]]
    bits = f"{document['bits_per_token']:.2f} bits a {unit}"
    first = f"{document['output']}: {coded:,} bytes{share} ({bits})"
    if quiet:
        return first
    best = min(plain, key=plain.__getitem__)
    others = ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in plain.items())
    saved = plain[best] - coded
    if saved > 0:
        enough = round(document["model_bytes"] * size / saved)
        last = (
            f"{saved:,} bytes less than {best}. The decoder needs the model too "
            f"({document['model_bytes']:,} bytes), so coding saves space only for more than "
            f"{enough:,} bytes of such files."
        )
    else:
        last = f"{best} is smaller: the model does not predict this file well enough."
    return f"{first}\nwithout a model: {others} bytes\n{last}"
