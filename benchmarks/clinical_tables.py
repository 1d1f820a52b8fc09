"""Clinical tables of several hospitals, a row a patient: breast cancer, pancreatitis, pregnancies, glioma.

A number is in public units (`Numbers`: a usual value and how far values lie apart, from textbooks), a choice has a
column for each of its values, and what is missing is 0. Columns that are known only after the outcome are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from real_data import FIVE_YEARS, Site, by_site

Row = Mapping[str, str]
Numbers = Mapping[str, tuple[float, float]]
Choices = Mapping[str, tuple[str, ...]]
PANCREATITIS = ("none", "pancreatitis")
AT_TERM = ("at term", "before 37 weeks")
GRADE = ("grade II", "grade III")
FEWEST = 20  # patients of a hospital that takes part
_FARTHEST = 6.0

_METABRIC_NUMBERS: Numbers = {
    "age_at_diagnosis": (60.0, 13.0),
    "tumor_size": (25.0, 15.0),
    "lymph_nodes_examined_positive": (2.0, 4.0),
    "nottingham_prognostic_index": (4.0, 1.2),
}
_METABRIC_CHOICES: Choices = {
    "pam50_claudin_low_subtype": ("LumA", "LumB", "Her2", "claudinlow", "Basal", "Normal"),
    "er_status": ("Positive",),
    "her2_status": ("Positive",),
    "pr_status": ("Positive",),
    "inferred_menopausal_state": ("Post",),
    "chemotherapy": ("1",),
    "hormone_therapy": ("1",),
    "radio_therapy": ("1",),
}
_INDO_YES = (
    *("sod", "pep", "recpanc", "psphinc", "precut", "difcan", "amp", "paninj", "acinar", "asa"),
    *("prophystent", "therastent", "pdstent", "sodsom", "bsphinc", "bstent", "chole"),
)
_OPT_NUMBERS: Numbers = {
    "Age": (26.0, 5.5),
    "BMI": (27.0, 7.0),
    "N.prev.preg": (2.0, 1.5),
    "N.qualifying.teeth": (14.0, 6.0),
    "BL.GE": (1.4, 0.5),
    "BL..BOP": (65.0, 20.0),
    "BL.PD.avg": (2.9, 0.5),
    "BL.CAL.avg": (1.5, 0.7),
}
_OPT_CHOICES: Choices = {
    "Group": ("T",),
    **dict.fromkeys(("Black", "White", "Nat.Am", "Hisp", "Public.Asstce", "Diabetes", "Use.Tob"), ("Yes",)),
    **dict.fromkeys(("Prev.preg", "Live.PTB", "Any.stillbirth", "Spont.ab"), ("Yes",)),
    "Education": ("8-12 yrs", "MT 12 yrs", "LT 8 yrs"),
    "Hypertension": ("Y",),
}
_GLIOMA_CHOICES: Choices = {
    "RNASeqCluster": ("1.0", "2.0", "3.0", "4.0"),
    "MethylationCluster": ("1.0", "2.0", "3.0", "4.0", "5.0"),
    "miRNACluster": ("1", "2", "3", "4"),
    "CNCluster": ("1.0", "2.0", "3.0"),
    "RPPACluster": ("1.0", "2.0", "3.0", "4.0"),
    "laterality": ("1.0", "3.0"),
    "tumor_location": ("2.0", "5.0", "6.0"),
    "gender": ("1.0",),
}


def metabric(data: Path) -> list[Site]:
    """METABRIC (Curtis et al., 2012; ODbL), five cohorts: dead within five years, or alive afterwards. Who was censored
    before is left out.
    """
    rows = [row for row in _rows(data / "tables" / "metabric_clinical.csv") if _years(row) > 5 or _dead(row)]
    label = [FIVE_YEARS[_years(row) <= 5] for row in rows]
    return _sites(rows, label, [f"cohort-{row['cohort']}" for row in rows], _METABRIC_NUMBERS, _METABRIC_CHOICES)


def pancreatitis(data: Path) -> list[Site]:
    """Indomethacin against pancreatitis after endoscopy (Elmunzer et al., 2012; MIT): what was known at its end."""
    rows = _rows(data / "tables" / "indo_rct.csv")
    choices: Choices = {
        **dict.fromkeys(_INDO_YES, ("1_yes",)),
        "gender": ("1_female",),
        "rx": ("1_indomethacin",),
        "type": ("1_type 1", "2_type 2", "3_type 3"),
    }
    label = [PANCREATITIS[row["outcome"] == "1_yes"] for row in rows]
    numbers = {"age": (45.0, 13.0), "risk": (2.4, 0.9)}
    return _sites(rows, label, [row["site"][2:] for row in rows], numbers, choices)


def pregnancies(data: Path) -> list[Site]:
    """Obstetrics and periodontal therapy (Michalowicz et al., 2006; MIT): a pregnancy's end from its beginning."""
    rows = [row for row in _rows(data / "tables" / "opt.csv") if row["Preg.ended...37.wk"]]
    label = [AT_TERM[row["Preg.ended...37.wk"] == "Yes"] for row in rows]
    return _sites(rows, label, [row["Clinic"] for row in rows], _OPT_NUMBERS, _OPT_CHOICES)


def glioma_grades(data: Path) -> list[Site]:
    """TCGA-LGG's patients (Buda et al., 2019): the grade from molecular clusters, age, sex and place. Whoever named the
    tissue graded it too, so its name is left out.
    """
    rows = [row for row in _rows(data / "lgg_mri" / "lgg_patients.csv") if row["neoplasm_histologic_grade"]]
    label = [GRADE[row["neoplasm_histologic_grade"] == "2.0"] for row in rows]
    numbers = {"age_at_initial_pathologic": (45.0, 14.0)}
    return _sites(rows, label, [row["institution"] for row in rows], numbers, _GLIOMA_CHOICES, fewest=10)


def _rows(path: Path) -> list[Row]:
    """Cells without blanks around them."""
    with path.open(newline="") as file:
        return [{name: cell.strip() for name, cell in row.items()} for row in csv.DictReader(file)]


def _years(row: Row) -> float:
    return float(row["overall_survival_months"]) / 12


def _dead(row: Row) -> bool:
    return row["overall_survival"] == "0"


def _sites(
    rows: Sequence[Row],
    label: Sequence[str],
    site: Sequence[str],
    numbers: Numbers,
    choices: Choices,
    fewest: int = FEWEST,
) -> list[Site]:
    """By hospital, of those with so many patients."""
    x = torch.tensor([_numbers(row, numbers) + _flags(row, choices) for row in rows], dtype=torch.float32)
    return [each for each in by_site(x, np.array(label), np.array(site)) if len(each.label) >= fewest]


def _numbers(row: Row, numbers: Numbers) -> list[float]:
    found = []
    for name, (usual, apart) in numbers.items():
        away = (float(row[name]) - usual) / apart if row[name] else 0.0
        found.append(min(max(away, -_FARTHEST), _FARTHEST))
    return found


def _flags(row: Row, choices: Choices) -> list[float]:
    return [float(row[name] == value) for name, values in choices.items() for value in values]
