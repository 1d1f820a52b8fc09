"""What a coordinator may send back over HTTP: from the address that was joined, as it is, and no longer than agreed.

httpx by itself reads an answer of any length into memory, unpacks what says that it is compressed, and follows a
redirect to wherever it points, also inside the hospital's own network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx

from wardround.errors import MessageError

Limit = Callable[[httpx.URL], int]


def bound(client: httpx.Client, limit: Limit) -> None:
    """Make a client read at most limit(url) bytes of an answer, uncompressed, and follow no redirect.

    Every call of the client then also raises MessageError, before more than that was read.
    """

    def check(response: httpx.Response) -> None:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise MessageError(f"an answer in {encoding[:32]!r}", allowed="no compression")
        if not isinstance(response.stream, httpx.SyncByteStream):
            raise TypeError("a synchronous client has synchronous streams")
        response.stream = _Bounded(response.stream, limit(response.request.url))

    client.follow_redirects = False
    client.headers["accept-encoding"] = "identity"
    client.event_hooks = {"response": [check]}


class _Bounded(httpx.SyncByteStream):
    """A stream that ends in a MessageError after so many bytes."""

    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > self._limit:
                raise MessageError("an answer that goes on", allowed=f"at most {self._limit} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()
