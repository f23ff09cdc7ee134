"""From the JSON of a scan to a page, a terminal, a notebook, and the difference of two reports.

Everything here is a pure function of the dict that ``schema.json`` describes; nothing is measured.
"""

from sonde.report._schema import check_report, schema
from sonde.report.answer import Answer
from sonde.report.diff import diff, new_or_worse
from sonde.report.diff_view import diff_to_html, diff_to_text
from sonde.report.files import load_report, save_report, to_json
from sonde.report.html import to_html
from sonde.report.notebook import to_mime
from sonde.report.scan import Report, scan
from sonde.report.terminal import to_text

__all__ = [
    "Answer",
    "Report",
    "check_report",
    "diff",
    "diff_to_html",
    "diff_to_text",
    "load_report",
    "new_or_worse",
    "save_report",
    "scan",
    "schema",
    "to_html",
    "to_json",
    "to_mime",
    "to_text",
]
