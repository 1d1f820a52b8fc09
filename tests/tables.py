"""Small federations about a table, in this process: hospitals that are functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.intake import ingest_table

from wardround.errors import WardroundError
from wardround_client.hospital import Hospital
from wardround_client.round import answer


def hospital(folder: Path, rows: Iterable[Sequence[object]], federation: str, policy: str = "") -> Hospital:
    """A hospital of columns a, b and y, one patient a row, that has approved the federation."""
    lines = [",".join(map(str, row)) for row in (("a", "b", "y"), *rows)]
    made = Hospital.create(
        folder,
        f'[hospital]\nname = "{folder.name}"\ndeclared_patients = {len(lines) - 1}\n'
        f"[budget]\nepsilon = 200.0\nepsilon_per_round = 100.0\n[policy]\n{policy}\n",
    )
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    ingest_table(
        folder / "table.csv", folder / "cohort", key=made.patients.key, features=("a", "b"), labels=("y",)
    )  # fmt: skip
    (folder / "federation.toml").write_text(federation)
    made.approvals.approve(folder / "federation.toml")
    return made


class Called:
    """Implements `Transport` over hospitals in this process."""

    def __init__(self, hospitals: Sequence[Hospital]) -> None:
        self.members = {each.config.hospital.name: each for each in hospitals}

    def hospitals(self) -> Sequence[str]:
        return list(self.members)

    def declared_patients(self, name: str) -> int | None:
        return self.members[name].config.hospital.declared_patients

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        for name, blob in requests.items():
            yield name, answer(self.members[name], blob)
