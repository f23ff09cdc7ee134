"""From the JSON of a scan to a page, a terminal, a notebook, and the difference of two reports.

Everything here is a pure function of the dict that ``schema.json`` describes; nothing is measured.
"""

from sonde.report._schema import check_report, schema
from sonde.report.files import load_report, save_report, to_json
from sonde.report.html import to_html

__all__ = ["check_report", "load_report", "save_report", "schema", "to_html", "to_json"]
