"""The list of planted faults."""

from tools.field import faults_pictures, faults_tables, faults_texts
from tools.field.planting import Fault

FAULTS: dict[str, Fault] = {
    f"{fault.subject}/{fault.name}": fault
    for fault in (
        *faults_pictures.STAMPS,
        *faults_pictures.GARMENTS,
        *faults_texts.LIBRARIES,
        *faults_texts.LANGUAGES,
        *faults_texts.MINILM,
        *faults_tables.TABLES,
        *faults_tables.REGRESSIONS,
        *faults_tables.SOUNDS,
    )
}
