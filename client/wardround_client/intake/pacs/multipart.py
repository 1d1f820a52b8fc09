"""Parts of a multipart answer (RFC 2046 5.1) as they arrive: none is held in memory."""

from __future__ import annotations

from collections.abc import Iterator

MOST_HEADER = 1 << 14
"""Bytes of a part's header, and of what stands before the first part."""


class MultipartError(ValueError):
    """The answer is not multipart, or ended in the middle."""


def parts(chunks: Iterator[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """The body of each part, as an iterator of bytes that is valid until the next part is asked for.

    Raises: MultipartError, where it ends before the closing delimiter.
    """
    stream = _Stream(chunks)
    delimiter = b"\r\n--" + boundary
    if sum(map(len, stream.until(delimiter, most=MOST_HEADER))) > MOST_HEADER:
        raise MultipartError("no part in sight")
    while stream.at_least(2)[:2] != b"--":
        for _ in stream.until(b"\r\n\r\n", most=MOST_HEADER):
            pass
        body = stream.until(delimiter)
        yield body
        for _ in body:
            pass


class _Stream:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.buffer = b"\r\n"  # the first delimiter may stand at the very beginning

    def at_least(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        return self.buffer

    def until(self, end: bytes, most: int = 0) -> Iterator[bytes]:
        """What comes before `end`, which is dropped."""
        keep, size = len(end) - 1, 0
        while (at := self.buffer.find(end)) < 0:
            ready = len(self.buffer) - keep
            if ready > 0:
                data, self.buffer = self.buffer[:ready], self.buffer[ready:]
                size += len(data)
                if most and size > most:
                    raise MultipartError("a header without an end")
                yield data
            self._more()
        data, self.buffer = self.buffer[:at], self.buffer[at + len(end) :]
        yield data

    def _more(self) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise MultipartError("the answer ended in the middle")
        self.buffer += chunk
