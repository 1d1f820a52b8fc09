from pathlib import Path

from tables import Store


def write(store: Store, folder: Path) -> None: ...
