"""Delete what holds patients who have withdrawn: models that were learned from them, and what names them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from wardround.errors import StorageError
from wardround_client.personal import adapted_file
from wardround_client.personal.prediction_folder import FOLDER, LIST, is_complete
from wardround_client.personal.suggestions import FOLDER as SUGGESTIONS


def forget_models(home: Path, pseudonyms: Collection[bytes]) -> list[str]:
    """Delete the adapted models that were learned from any of these patients -> their names.

    Raises: StorageError, when one cannot be read or deleted.
    """
    gone = {pseudonym.hex() for pseudonym in pseudonyms}
    forgotten = [name for name in adapted_file.names(home) if gone & adapted_file.support_of(home, name)]
    for name in forgotten:
        path = adapted_file.folder(home, name) / adapted_file.MODEL
        with adapted_file.reading(path):
            path.write_bytes(bytes(path.stat().st_size))
            shutil.rmtree(path.parent)
    return forgotten


def forget_predictions(home: Path, pseudonyms: Collection[bytes]) -> list[Path]:
    """Delete the predictions in a home that name any of these patients, with all others that stand beside them.

    As the patient, or as a case that is near. A folder that is not complete goes too: who is in its last
    picture nobody can say.

    Returns: the folders. Raises: StorageError, when one cannot be read or deleted.
    """
    gone = [pseudonym.hex() for pseudonym in pseudonyms]
    forgotten = []
    for folder in sorted((home / FOLDER).glob("*/")):
        try:
            text = (folder / LIST).read_text() if is_complete(folder) else ""
            if not text or any(name in text for name in gone):
                shutil.rmtree(folder)
                forgotten.append(folder)
        except OSError as error:
            raise StorageError(f"{folder} cannot be deleted ({error.strerror})", do="delete it by hand") from None
    return forgotten


def forget_suggestions(home: Path, pseudonyms: Collection[bytes]) -> list[Path]:
    """Delete the lists of whom to label in a home that name any of these patients, filled in or not -> the files.

    Raises: StorageError, when one cannot be read or deleted.
    """
    gone = [pseudonym.hex().encode() for pseudonym in pseudonyms]
    forgotten = []
    for file in sorted((home / SUGGESTIONS).glob("*.csv")):
        try:
            if any(name in file.read_bytes() for name in gone):
                file.unlink()
                forgotten.append(file)
        except OSError as error:
            raise StorageError(f"{file} cannot be deleted ({error.strerror})", do="delete it by hand") from None
    return forgotten
