"""Generate the gRPC code of hospital.proto; needs grpcio-tools.

    python -m wardround_client.service._proto.generate [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent


def generate(folder: Path) -> None:
    """Write hospital_pb2.py, hospital_pb2.pyi and hospital_pb2_grpc.py into a folder."""
    from importlib.resources import files

    from grpc_tools import protoc

    arguments = [
        "protoc",
        f"--proto_path={HERE.parent}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={folder}",
        f"--pyi_out={folder}",
        f"--grpc_python_out={folder}",
        "hospital.proto",
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    grpc_file = folder / "hospital_pb2_grpc.py"
    # protoc imports its sibling as a top-level module; ours lies in a package.
    text = grpc_file.read_text(encoding="utf-8")
    grpc_file.write_text(
        text.replace("import hospital_pb2 as", "from wardround_client.service._proto import hospital_pb2 as"),
        encoding="utf-8",
    )


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
