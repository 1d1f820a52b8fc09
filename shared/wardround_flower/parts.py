"""Bounds on a message as Flower sends it: objects that name each other by SHA-256 (flwr 1.42). Both sides use these.

A message of ours is a chain: Message, RecordDict, ArrayRecord, Array, and as many ArrayChunks as its length explains.
An object is stored as: class name, ids of its children and length of the body, with blanks between; a zero byte; the
body.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from wardround.errors import MessageError

ENVELOPE_BYTES = 1 << 18  # what Flower adds to a blob is far less
CHUNK_BYTES = 5 * 1024 * 1024  # of one part, as Flower cuts a blob


def most_parts(limit: int) -> int:
    """How many objects a message of a blob of `limit` bytes may have."""
    return 64 + limit // ENVELOPE_BYTES


def check_parts(parts: Mapping[str, bytes], limit: int) -> None:
    """Look at a message's objects, by their ids, before they are put together.

    An array lists its chunks by number, and may list one chunk a million times: a small message can be a large one. And
    JSON of two bytes is an object of sixty.

    Raises:
        MessageError: more than `limit` bytes when put together, or more than an envelope beside the chunks.
        ValueError, LookupError, TypeError or RecursionError: an array is not of that form.
    """
    beside = sum(len(content) for content in parts.values() if not content.startswith(b"ArrayChunk "))
    if beside > ENVELOPE_BYTES:
        raise MessageError(f"a message with {beside:,} bytes beside its numbers", allowed=f"{ENVELOPE_BYTES:,}")
    unfolded = array_bytes(parts)
    if unfolded > limit:
        raise MessageError(f"a message that unfolds to {unfolded:,} bytes", allowed=f"at most {limit:,}")


def array_bytes(parts: Mapping[str, bytes]) -> int:
    """How many bytes the arrays of a message hold when they are put together, found without doing so.

    Raises: as `check_parts`, but for MessageError.
    """
    total = 0
    for content in parts.values():
        if not content.startswith(b"Array "):
            continue
        head, _, body = content.partition(b"\0")
        children = head.decode().split(" ")[1].split(",")
        total += sum(len(parts[children[number]]) for number in json.loads(body)["arraychunk_ids"])
    return total
