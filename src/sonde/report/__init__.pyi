from sonde.findings.settings import ScanSettings as ScanSettings
from sonde.report._schema import check_report as check_report
from sonde.report._schema import schema as schema
from sonde.report.answer import Answer as Answer
from sonde.report.diff import diff as diff
from sonde.report.diff import new_or_worse as new_or_worse
from sonde.report.diff_view import diff_to_html as diff_to_html
from sonde.report.diff_view import diff_to_text as diff_to_text
from sonde.report.documents import save_document as save_document
from sonde.report.files import load_report as load_report
from sonde.report.files import save_report as save_report
from sonde.report.files import to_json as to_json
from sonde.report.html import to_html as to_html
from sonde.report.notebook import to_mime as to_mime
from sonde.report.scan import Report as Report
from sonde.report.scan import scan as scan
from sonde.report.terminal import to_text as to_text

__all__: list[str]
