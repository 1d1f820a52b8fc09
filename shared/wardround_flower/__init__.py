"""A message of wardround as Flower content, and back: the one adapter that both programs use. Public Flower API only.

It is a package of its own, because the library `wardround` imports no Flower.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from wardround.errors import MessageError
from wardround.text import shown
from wardround.wire import LIMIT_BYTES

ACTION = "wardround"
MESSAGE_TYPE = f"query.{ACTION}"
_KIND = "wardround.blob"  # how the bytes are to be read: as they are

__all__ = ["ACTION", "MESSAGE_TYPE", "pack", "unpack"]


def pack(blob: bytes) -> RecordDict:
    """A wardround message as Flower content: one array of bytes, which Flower cuts into chunks of its own."""
    return RecordDict({"wardround": ArrayRecord({"blob": Array("uint8", (len(blob),), _KIND, blob)})})


def unpack(content: RecordDict) -> bytes:
    """The inverse of `pack`. Raises: MessageError, for any other content."""
    try:
        array = content.array_records["wardround"]["blob"]
    except Exception as error:  # whatever a sender may have put there
        raise MessageError(f"not a message of wardround ({type(error).__name__})") from None
    if (array.stype, array.dtype, array.shape) != (_KIND, "uint8", (len(array.data),)) or len(array.data) > LIMIT_BYTES:
        raise MessageError(f"not a message of wardround ({shown(array.dtype, 16)} {list(array.shape)[:4]})")
    return bytes(array.data)
