"""Delete what holds patients who have withdrawn: models that were learned from them, and what names them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from wardround.errors import StorageError
from wardround.files import remove_folder
from wardround_client.personal import adapted_file
from wardround_client.personal.prediction_folder import FOLDER, LIST, is_complete
from wardround_client.personal.suggestions import FOLDER as SUGGESTIONS


def forget_models(home: Path, pseudonyms: Collection[bytes]) -> list[str]:
    """Delete the adapted models that were learned from any of these patients -> their names.

    Raises: StorageError, when one cannot be read or deleted.
    """
    gone = {pseudonym.hex() for pseudonym in pseudonyms}
    forgotten = []
    for name in adapted_file.names(home):
        path = adapted_file.folder(home, name) / adapted_file.MODEL
        try:
            if gone & adapted_file.support_of(home, name):
                with adapted_file.reading(path):
                    path.write_bytes(bytes(path.stat().st_size))
                    remove_folder(path.parent)
                forgotten.append(name)
        except StorageError:
            if path.exists():  # otherwise somebody deleted it meanwhile
                raise
    return forgotten


def forget_predictions(home: Path, pseudonyms: Collection[bytes]) -> list[Path]:
    """Delete the predictions in a home that name any of these patients, with all others that stand beside them.

    As the patient, or as a case that is near. A folder that is not complete goes too: who is in its last
    picture nobody can say.

    Returns: the folders. Raises: StorageError, when one cannot be read or deleted.
    """
    gone = [pseudonym.hex().encode() for pseudonym in pseudonyms]
    forgotten = []
    for folder in sorted((home / FOLDER).glob("*/")):
        try:
            if not is_complete(folder) or _named(folder / LIST, gone):
                remove_folder(folder)
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
            if _named(file, gone):
                file.unlink(missing_ok=True)
                forgotten.append(file)
        except OSError as error:
            raise StorageError(f"{file} cannot be deleted ({error.strerror})", do="delete it by hand") from None
    return forgotten


def _named(file: Path, names: Collection[bytes]) -> bool:
    """Whether it names one of them, or is empty, or somebody deletes it at this moment."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return True
    return not text or any(name in text for name in names)
