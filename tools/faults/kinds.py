"""Every kind of file that sonde writes, how one is made, and what must notice that it is damaged.

``tests/faults/test_kinds.py`` compares what stands here with the functions that write files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TRACK = "run.track"
_SCORED = "score left.sonde nets:make {source}/right.npz"


@dataclass(frozen=True)
class Kind:
    """A kind of finished file.

    Parameters
    ----------
    file : str
        Its place in the folder of finished files.
    writer : str
        The function that writes it.
    made : str
        The command that does, without ``-o``; empty where it is there already.
    refused_by : tuple of str
        Commands that must refuse it once it is damaged.
    says : str
        A command that must refuse it then, or say what it said before.
    hashed : bool
        Whether the format holds a checksum; else a digit that changed is another digit.
    """

    file: str
    writer: str
    made: str = ""
    refused_by: tuple[str, ...] = ()
    says: str = ""
    hashed: bool = True


@dataclass(frozen=True)
class Part:
    """A kind of file inside a folder: where it lies, and the function that writes it."""

    pattern: str
    writer: str


def _page(file: str, writer: str, made: str) -> Kind:
    return Kind(file, writer, made, (f"verify {file}",))


def _table(kind: str, hashed: bool = False) -> Kind:
    """Return a table of scores, which is evaluated against a sound one."""
    against = "usual.csv" if kind == "parquet" else "scores.parquet"
    says = f"evaluate scores.{kind} {against} --resamples 10 --json"
    return Kind(
        f"scores.{kind}", "run.scoring.tables:write_table", _SCORED, says=says, hashed=hashed
    )


def _export(kind: str, writer: str, reads: bool = False) -> Kind:
    """Return exported rows; arrays come back as features."""
    file = f"rows.{kind}"
    says = f"fit norms - {file} -o used.sonde --json" if reads else ""
    writer = f"store.exporting.{writer}"
    return Kind(file, writer, "export acts", (f"verify {file}",), says)


FINISHED: Mapping[str, Kind] = {
    "state": Kind(
        "left.sonde",
        "run.fitting.fitted:Fitted.save",
        refused_by=("verify left.sonde", "merge left.sonde right.sonde -o out.sonde"),
    ),
    "merged state": Kind(
        "merged.sonde",
        "run.fitting.fitted:Fitted.save",
        refused_by=("verify merged.sonde", _SCORED.replace("left", "merged") + " -o out.csv"),
    ),
    "running state": Kind(
        "running.sonde", "engine.running:Running.save", refused_by=("verify running.sonde",)
    ),
    "state of a watch": Kind(
        "watch.sonde", "alarms._saved:save_watch", refused_by=("verify watch.sonde",)
    ),
    "step of a training": Kind(
        f"{TRACK}/step-0000000005.sonde",
        "run.fitting.fitted:Fitted.save",
        refused_by=(f"verify {TRACK}",),
    ),
    "report, JSON": _page("report.json", "report.files:save_report", "scan - {source}/scan.npz"),
    "report, HTML": _page("report.html", "report.files:save_report", "scan - {source}/scan.npz"),
    "difference, HTML": _page(
        "difference.html", "cli.scan:Scan._compare", "scan --diff report.json report.json"
    ),
    "drift, JSON": _page(
        "drift.json", "report.documents:save_document", "drift left.sonde right.sonde"
    ),
    "drift, HTML": _page(
        "drift.html", "report.documents:save_document", "drift left.sonde right.sonde"
    ),
    "scores, HTML": _page("scores.html", "report.scores:save_scores", _SCORED),
    "scores, Parquet": _table("parquet", hashed=True),
    "scores, CSV": _table("csv"),
    "scores, JSON": _table("json"),
    "scores, JSON lines": _table("jsonl"),
    "evaluation, HTML": _page(
        "evaluation.html",
        "report.documents:save_document",
        "evaluate usual.csv scores.parquet --resamples 10",
    ),
    "exported rows, npz": _export("npz", "arrays:write_npz", reads=True),
    "exported rows, safetensors": _export("safetensors", "arrays:write_safetensors", reads=True),
    "exported rows, Parquet": _export("parquet", "tables:write_parquet"),
}

OF_A_RUN: Mapping[str, Part] = {
    "run: plan": Part("plan.json", "run.passes.ledger:Ledger._start"),
    "run: states": Part("states/*.sonde", "run.passes.ledger:Ledger._write"),
    "run: lock": Part("lock", "files.lock:RunLock.__init__"),
}

OF_A_STORE: Mapping[str, Part] = {
    "manifest": Part("store.json", "store.writing:StoreWriter.start"),
    "groups": Part("groups.arrow", "store.writing:StoreWriter.start"),
    "record": Part("ranges/*", "store._files:RangeFiles._commit"),
    "examples": Part("rows/examples/*", "store._files:RangeFiles.__init__"),
    "rows": Part("rows/pooled/*", "store._files:RangeFiles.__init__"),
}

OF_A_SERVER: Mapping[str, Part] = {
    "serve: changes": Part("traffic/0/changes.json", "serving.kept:write_kept"),
}

NOT_TRIED: Mapping[str, str] = {
    "files.durable:atomic_write": "writes for all others",
    "files.copies:_copied": "a copy of an object, made anew where its version or size differs",
    "files.state_file:write_state": "writes for all others",
    "files.state_file:write_one": "write_state, which is tried",
    "run.coding.code_file:encode_file": "decoding checks the hash: tests/cli/test_commands.py",
    "run.coding.code_file:decode_file": "the text as it was: no command reads it",
    "layers.saving:save_layers": "safetensors that loads without sonde: no hash",
    "run.training.arms:_Keeper._save": "the state of a training: torch reads it, unsealed",
    "cli.labels:Labels.run": "a table for people: no command reads it",
    "cli.study:Study._one": "for people and other programs: no command reads it",
    "report._standalone:Svg.save": "for people: no command reads it",
    "run.passes.chain:_write": "a learner's state in a run: tests/run/test_damaged_runs.py",
    "serving.peers:Peers._write": "every second anew: tests/serving/test_replicas.py",
    "run.passes.ledger:Ledger.adopt": "a state of the run that another machine wrote",
    "run.passes.ranges:token_in": "an empty file that goes with the run",
    "store.growing:_commit": "the manifest once more, with what was added",
    "run.explaining.kept:_write": "judged again where it is damaged: tests/run/test_explaining.py",
    "run.scoring.weak_file:WeakGroups.save": "write_state, which is tried",
    "store.exporting.arrays:write_npy": "a folder of arrays without a seal, for other programs",
    "store.exporting.to_lance:write_lance": "a folder: tests/store/test_sealed_exports.py",
    "store.exporting.to_lance:_list_files": "the list of the files in that folder",
    "files.seal:sealed_file": "writes for all exports",
    "compress.stack_file:save_stack": "each block has a hash: tests/compress/test_stack_file.py",
    "files.gguf:write_control_vector": "for llama.cpp: no command reads it",
    "explain.dictionary:Dictionary.save": "safetensors that loads without sonde: no hash",
    "explain.dictionary:write_saelens": "a folder in the layout of SAELens",
    "report.card:save_card": "a section of a text that people edit: no command reads it",
    "weights._weight_file:write_hashed": "a new folder: tests/weights/test_saving.py",
    "weights.merging:_merge_folders": "a new folder: tests/weights/test_merging.py",
    "weights._told:write_told": "a new folder: tests/weights/test_saving.py",
    "tap.training.terms:Terms.save": "safetensors that loads without sonde: no hash",
    "run.training.checkpoints:record_checkpoints": "hashes of checkpoints, beside a track",
    "run.instruments.listing:listed": "made anew where it cannot be read",
    "testing.statistic_laws:law_save": "a state that a law reads back at once",
}


def writers() -> set[str]:
    """Return every function that is named here."""
    parts = (*FINISHED.values(), *OF_A_RUN.values(), *OF_A_STORE.values(), *OF_A_SERVER.values())
    return {part.writer for part in parts} | NOT_TRIED.keys()
