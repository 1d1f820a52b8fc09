"""Write the locks anew, by uv: `make lock` (with `UPGRADE=1`: newest versions instead of today's).

constraints.txt                   what `make demo` and `make test` install (pip -c)
deploy/hospital/requirements.txt  what a hospital installs, each file by its SHA-256 (pip --require-hashes)

torch and the CUDA libraries that only it needs are in neither list of hashes: which build of torch is right depends on
the machine, and a hospital installs that first. Its version is pinned here.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
_CHOSEN_BY_THE_MACHINE = re.compile(r"^(torch|triton|nvidia-|cuda-)")


def compiled(project: Path, output: Path, *options: str) -> str:
    """The resolution of a project for Linux and each supported Python, without torch's own part."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(f"{TORCH}\n")
        target = Path(folder) / "out.txt"
        if output.exists() and not os.environ.get("UPGRADE"):  # uv keeps to the versions that stand there
            target.write_text(output.read_text())
        command = ["uv", "pip", "compile", str(project), "--universal", "--python-version", "3.11", "--no-header"]
        command += ["--no-annotate", "-q", "-c", str(pins), "-o", str(target), *options]
        subprocess.run(command, check=True, cwd=ROOT)
        entries = re.split(r"\n(?=\S)", target.read_text().strip())
    return "\n".join(entry for entry in entries if not _CHOSEN_BY_THE_MACHINE.match(entry)) + "\n"


def main() -> None:
    """Write both files."""
    constraints, hospital = ROOT / "constraints.txt", ROOT / "deploy" / "hospital" / "requirements.txt"
    text = compiled(ROOT / "pyproject.toml", constraints, "--extra", "dev")
    constraints.write_text(
        f"# Made by `make lock`. The machine decides which build of torch it installs.\n{TORCH}\n{text}"
    )
    text = compiled(hospital.with_name("pyproject.toml"), hospital, "--generate-hashes", "-c", str(constraints))
    hospital.write_text(
        f"# Made by `make lock`. Install {TORCH} first, then this with --no-deps --require-hashes.\n{text}"
    )


if __name__ == "__main__":
    main()
