"""Public tables of survival, as arrays by hospital; where they come from and their licences: docs/benchmarks.md."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

_BREAST_REGIONS = ("Northeast", "South", "Midwest", "West", "Europe")


@dataclass(frozen=True)
class Followed:
    """One hospital's patients, a row each, and what became of them. x: float32 [n, features]. time, event: float64 [n],
    event 1 where it was, 0 where the patient was lost.
    """

    name: str
    x: Tensor
    time: NDArray[np.float64]
    event: NDArray[np.float64]


def tcga_breast(data: Path) -> list[Followed]:
    """TCGA-BRCA (Liu et al., 2018) as FLamby prepared it, by region of the world; days. Two regions have too few."""
    region, rows = _tcga_breast(data)
    regions = np.array([region.get(row["pid"].split("-")[1], "") for row in rows])
    time, event = (np.array([float(row[name]) for row in rows]) for name in ("T", "E"))
    return _followed(_breast_columns(rows), time, event, regions, _BREAST_REGIONS)


def metabric(data: Path) -> list[Followed]:
    """METABRIC's clinical columns (Curtis et al., 2012), five cohorts; months. In the file 1 is who is alive; what
    somebody died of would tell the answer, and is not read. Gaps stay NaN.
    """
    with (data / "tables" / "metabric_clinical.csv").open() as file:
        rows = list(csv.DictReader(file))

    def number(row: Mapping[str, str], name: str, centre: float, spread: float) -> float:
        return (float(row[name]) - centre) / spread if row[name] else float("nan")

    table = [
        [
            number(row, "age_at_diagnosis", 61, 13),
            number(row, "tumor_size", 26, 15),
            number(row, "nottingham_prognostic_index", 4, 1.1),
            np.log1p(float(row["lymph_nodes_examined_positive"])) - 0.6,
            *(float(row[name]) for name in ("chemotherapy", "hormone_therapy", "radio_therapy")),
            *(float(row[name] == "Positive") for name in ("er_status", "pr_status", "her2_status")),
            float(row["inferred_menopausal_state"] == "Post"),
            *(float(row["pam50_claudin_low_subtype"] == name) for name in ("LumB", "Her2", "claudinlow", "Basal")),
        ]
        for row in rows
    ]
    time = np.array([float(row["overall_survival_months"]) for row in rows])
    event = np.array([float(row["overall_survival"] == "0") for row in rows])
    cohort = np.array([row["cohort"] for row in rows])
    return _followed(torch.tensor(table), time, event, cohort, ("1", "2", "3", "4", "5"))


def lung(data: Path) -> list[Followed]:
    """Gene expression of lung tumours (Parmigiani et al., 2004), months; Stanford knows 22, and learns only."""
    with np.load(data / "tables" / "lung_expression.npz") as file:
        known = ~np.isnan(file["dead"]) & ~np.isnan(file["time_months"])
        site = file["site_names"][file["site"]][known]
        x, time, event = (file[name][known] for name in ("X", "time_months", "dead"))
    return _followed(torch.from_numpy(x), time.astype(float), event.astype(float), site, tuple(np.unique(site)))


def glioblastoma(data: Path) -> list[Followed]:
    """TCGA's glioblastomas, mRNA and miRNA of two hospitals; days."""
    with np.load(data / "tables" / "gbm_expression.npz") as file:
        site = file["site_names"][file["site"]]
        x = np.concatenate([_ranks(file["X"]), _ranks(file["mirna"])], 1)  # two platforms, each with its own unit
        time, event = file["time_days"].astype(float), file["dead"].astype(float)
    return _followed(torch.from_numpy(x).float(), time, event, site, tuple(np.unique(site)))


def _ranks(x: NDArray[Any]) -> NDArray[np.float64]:
    """Each row as the normal scores of its ranks."""
    found: NDArray[np.float64] = stats.norm.ppf((stats.rankdata(x, axis=1) - 0.5) / x.shape[1])
    return found


def _followed(
    x: Tensor, time: NDArray[np.float64], event: NDArray[np.float64], site: NDArray[np.str_], names: Sequence[str]
) -> list[Followed]:
    found = []
    for name in names:
        here = np.flatnonzero(site == name)
        found.append(Followed(str(name), x[torch.from_numpy(here)].float(), time[here], event[here]))
    return found


def _tcga_breast(data: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Regions by tissue site, and the rows."""
    folder = data / "tables"
    with (folder / "tcga_brca_centers.csv").open() as file:
        region = {row["TSS Code"]: row["Region"] for row in csv.DictReader(file)}
    with (folder / "tcga_brca.csv").open() as file:
        return region, list(csv.DictReader(file))


def _breast_columns(rows: Sequence[Mapping[str, str]]) -> Tensor:
    """Age in units of 13 years about 58, and columns of 0 and 1."""
    columns = [name for name in rows[0] if name not in ("pid", "E", "T")]
    x = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    age = columns.index("age_at_index")
    x[:, age] = (x[:, age] - 58) / 13
    return x
