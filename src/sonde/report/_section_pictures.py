"""Sections with pictures and tables of the model: depth, similarity, units, answers."""

from typing import Any

from sonde.core.result import FLAGS
from sonde.findings.catalogue import codes_of
from sonde.report._format import plural, share, shown
from sonde.report._markup import ElementIds, Markup, el
from sonde.report._parts import absent, figure, section, tabled
from sonde.report._picture import Cell, Numbers
from sonde.report._pictures_answers import (
    confusion_picture,
    labels_picture,
    prediction_picture,
)
from sonde.report._pictures_depth import depth_numbers, depth_pictures, measure_pictures
from sonde.report._pictures_sites import similarity_picture, spectrum_picture
from sonde.report._pictures_units import units_picture
from sonde.report._select import MAX_SITES
from sonde.report._versus_words import sides
from sonde.run.fitting.fitted_rows import is_rounding
from sonde.run.instruments.catalogue import method_of


def depth_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the depth profile and the spectra."""
    if not report["sites"]:
        return absent("Depth profile", "No site was read.")
    spectrum = spectrum_picture(report)
    panels = [figure(picture, names) for picture in depth_pictures(report)]
    lead = "Sites in order of execution. Bands are 95 % intervals; larger marks are findings."
    if (report.get("versus") or {}).get("profiles"):
        lead += " Dashed, squares: {1}; without dashes: {0}.".format(*sides(report))
    if len(report["sites"]) > MAX_SITES:
        lead += f" Of {len(report['sites']):,} sites, one per block is drawn."
    single = (
        None if panels else el("p", "Only one site was read, so no profile by depth can be drawn.")
    )
    tools = tabled(depth_numbers(report), names, "All statistics of every site")
    return section(
        "depth", "Depth profile", single, *panels, tools,
        figure(spectrum, names) if spectrum else None, lead=lead,
    )  # fmt: skip


def similarity_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the similarity matrix of sites."""
    similarity = report.get("similarity")
    picture = similarity_picture(similarity) if similarity else None
    if picture is None:
        return absent("Similarity map", "Needs two sites with the same rows.")
    rows = (
        plural(similarity["n_rows"], "row")
        if similarity and similarity.get("n_rows")
        else "all rows"
    )
    lead = f"Similarity of the geometry of {rows} at each pair of sites."
    return section("similarity", "Similarity map", figure(picture, names), lead=lead)


def answers_section(report: dict[str, Any], names: ElementIds) -> Markup | None:
    """Return the confusion matrix; nothing if the model's answers are not known."""
    table = (report.get("answers") or {}).get("confusion")
    picture = confusion_picture(table) if table else None
    return section("answers", "Answers", figure(picture, names)) if picture else None


def units_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the size of units by depth and the units that findings name."""
    picture = units_picture(report.get("units") or [])
    if picture is None:
        return absent("Units", "This report has no statistics of single units.")
    rows = [
        (
            row["site"],
            unit["unit"],
            unit["rms"],
            unit["max"],
            unit["zero_share"],
            ", ".join(unit.get("codes", ())),
        )
        for row in report["units"]
        for unit in row["named"]
    ]
    columns = ("site", "unit", "rms", "largest", "zero share", "named by")
    named = (
        tabled(Numbers(columns, tuple(rows[:200]), "named units"), names, "Named units")
        if rows
        else None
    )
    return section("units", "Units", figure(picture, names), named)


def labels_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the accuracy of a label probe at each site."""
    labels = report.get("labels")
    if labels is None:
        return absent("Labels", _without_labels(report))
    picture = labels_picture(report)
    classes = tuple(
        tuple(row[k] for k in ("label", "n", "recall", "low", "high")) for row in labels["classes"]
    )
    confusions = tuple(
        tuple(row[k] for k in ("label", "predicted", "n", "share")) for row in labels["confusions"]
    )
    parts = [figure(picture, names)] if picture else []
    columns = ("class", "rows", "recall", "low", "high")
    parts.append(tabled(Numbers(columns, classes, "classes"), names, "Classes at the best site"))
    if confusions:
        columns = ("label", "taken for", "rows", "fraction of the label's rows")
        parts.append(tabled(Numbers(columns, confusions, "confusions"), names, "Confusions"))
        worst = labels["confusions"][0]
        words = f"Its probe confuses most: {shown(worst['label'], 60)}, classified as "
        words += shown(worst["predicted"], 60)
        parts.insert(
            1,
            el(
                "p", f"{words} ({plural(worst['n'], 'row')}, {share(worst['share'])} of the label)."
            ),
        )
    return section("labels", "Labels", *parts)


def _without_labels(report: dict[str, Any]) -> str:
    """Return why labels are not probed: none exist, or the check was withheld."""
    if not report["provenance"]["data"].get("label_column"):
        return "No labels were given (--label-column)."
    codes = codes_of("labels")
    reasons = [check["reason"] for check in report["checks"] if check["code"] in codes]
    words = "".join(f": {reason}" for reason in reasons if reason)
    return f"Labels were given, but no probe could be evaluated{words}."


def measures_section(report: dict[str, Any], names: ElementIds) -> Markup | None:
    """Return the results of --measures and --deep, or None if neither was used."""
    lines, missing = report.get("measures") or [], report.get("not_measured") or []
    if not lines and not missing:
        return None
    parts: list[Markup | None] = [figure(picture, names) for picture in measure_pictures(report)]
    if lines:
        columns = ("measure", "site", "value", "se", "null", "rows", "unit", "flags")
        rows = tuple(map(_measured, lines))
        parts.append(tabled(Numbers(columns, rows, "measures"), names, "All values"))
        parts.append(el("ul", *(el("li", text) for text in _readings(lines)), cls="limits"))
    if missing:
        texts = [f"{shown(one['method'], 60)}: {shown(one['reason'], 200)}" for one in missing]
        parts.append(el("p", f"Left out: {'; '.join(texts)}.", cls="reading"))
    return section("measures", "Measures", *parts)


def _measured(line: dict[str, Any]) -> tuple[Cell, ...]:
    flags = "; ".join(FLAGS[flag] if flag in FLAGS else str(flag) for flag in line["flags"])
    error = None if is_rounding(line["se"], line["value"], None, None) else line["se"]
    head = (line["method"], line["site"], line["value"], error, line.get("null"))
    return (*head, line["n"], line["unit"], flags)


def _readings(lines: list[dict[str, Any]]) -> list[str]:
    """Return how to read each measure: what it is, its range and its direction."""
    texts = []
    for word in dict.fromkeys(str(line["method"]) for line in lines):
        method = method_of(word.partition("(")[0])
        if method is not None:
            texts.append(f"{shown(word, 60)}: {method.summary} Range: {method.reading}")
    return texts


def prediction_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the next-token loss by depth."""
    prediction = report.get("prediction")
    picture = prediction_picture(prediction) if prediction else None
    if picture is None:
        return absent(
            "Prediction by depth", "Available only for causal language models with a head."
        )
    return section("prediction", "Prediction by depth", figure(picture, names))
