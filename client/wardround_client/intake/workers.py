"""Many items at once, each read in a worker process: one that crashes, loops or eats memory costs itself only."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from wardround.errors import WardroundError
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import Recipe
from wardround_client.intake.source import Instance, Item, Rejection

AnyItem = TypeVar("AnyItem", bound=Item)
Outcome = Instance | Rejection

PATIENCE_S = 120.0
"""For one item that has the machine to itself. The slowest real file that we know takes some seconds."""

CRASHED = Rejection("a decoder crashed", "the process died; the file may be malicious", passing=True)
TOO_SLOW = Rejection("a decoder did not come to an end", "the file may be malicious", passing=True)
NO_MEMORY = Rejection("not enough memory to decode it", passing=True)
UNSTEADY = Rejection("it changed while it was read", "ingest again when nobody writes it", passing=True)
AGAIN = (CRASHED, TOO_SLOW, NO_MEMORY)
"""What is believed only of an item that had the machine to itself: what others needed decides about nobody's file."""

_TRIES = 3

AHEAD, AHEAD_BYTES = 32, 1 << 23
"""Items, and bytes of rows, in flight a worker: enough that none waits, few enough that memory stays flat."""


def outcomes(
    items: Iterable[AnyItem],
    recipe: Recipe,
    pseudonyms: Pseudonyms,
    workers: int | None,
    *,
    patience_s: float = PATIENCE_S,
) -> Generator[tuple[AnyItem, Outcome], None, None]:
    """What becomes of each item, in the order given: as `Readers`, for one list of items."""
    with closing(Readers(recipe, pseudonyms, workers, patience_s=patience_s)) as readers:
        yield from readers.outcomes(items)


class Readers:
    """Worker processes that read one list of items after another; started when the first item comes.

    Args:
        recipe: how rows are made.
        pseudonyms: the hospital's keyed hashes.
        workers: processes; None: one for each core; 0: this very process, which a crash or a loop would end.
        patience_s: how long one item may take.
    """

    def __init__(
        self, recipe: Recipe, pseudonyms: Pseudonyms, workers: int | None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._recipe, self._pseudonyms, self._patience_s = recipe, pseudonyms, patience_s
        self._count = len(os.sched_getaffinity(0)) if workers is None else workers
        self._ahead = self._count * max(3, min(AHEAD, AHEAD_BYTES // recipe.layout.row_bytes))
        self._pool: _Pool | None = None

    def outcomes(self, items: Iterable[AnyItem]) -> Generator[tuple[AnyItem, Outcome], None, None]:
        """What becomes of each item, in the order given, whatever the number of workers and whichever item fails.

        items: consumed only as fast as results are taken. One list at a time.
        """
        if not self._count:
            for item in items:
                yield item, _read(item, self._recipe, self._pseudonyms)
            return
        todo = iter(items)
        flying: deque[tuple[AnyItem, ProcessFuture[Outcome]]] = deque()
        try:
            while flying or (flying := self._submitted(islice(todo, 1))):
                flying += self._submitted(islice(todo, self._ahead - len(flying)))
                item, future = flying.popleft()
                outcome = _result(future)
                if outcome in AGAIN:
                    self.close()
                    outcome = self._alone(item)
                    flying = self._submitted(later for later, _ in flying)
                yield item, outcome
        finally:
            if flying:  # nobody waits for them any more
                self.close()

    def _submitted(self, items: Iterable[AnyItem]) -> deque[tuple[AnyItem, ProcessFuture[Outcome]]]:
        made: deque[tuple[AnyItem, ProcessFuture[Outcome]]] = deque()
        for item in items:
            self._pool = self._pool or _Pool(self._count, self._recipe, self._pseudonyms, self._patience_s)
            made.append((item, self._pool.submit(item)))
        return made

    def _alone(self, item: Item) -> Outcome:
        with closing(_Pool(1, self._recipe, self._pseudonyms, self._patience_s)) as pool:
            return _result(pool.submit(item))

    def close(self) -> None:
        """End the processes; further items start others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _result(future: ProcessFuture[Outcome]) -> Outcome:
    try:
        return future.result()
    except TimeoutError:
        return TOO_SLOW
    except ProcessExpired:
        return CRASHED
    except BrokenProcessPool:
        raise WardroundError(
            "no process can be started to read files in", do="close other programs, or ask for fewer --workers"
        ) from None


def processes() -> multiprocessing.context.ForkServerContext:
    """What starts a process, with this package imported already: only the first one of a program takes seconds."""
    # Never fork: the caller may hold torch's or gRPC's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "wardround_client.intake.pacs.items"])
    return context


class _Pool:
    """Worker processes, and a pipe: they end when its other end is closed, also when this process was killed."""

    def __init__(self, count: int, recipe: Recipe, pseudonyms: Pseudonyms, patience_s: float) -> None:
        context = processes()
        self._theirs, self._ours = context.Pipe(duplex=False)
        self._patience_s = patience_s
        arguments = (recipe, pseudonyms, self._theirs)
        self._pool = ProcessPool(count, initializer=_start, initargs=arguments, context=context)

    def submit(self, item: Item) -> ProcessFuture[Outcome]:
        return self._pool.schedule(_work, (item,), timeout=self._patience_s)

    def close(self) -> None:
        """At once, whatever they are doing: it is wanted no more, or done again elsewhere."""
        self._ours.close()
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        self._theirs.close()


_worker: tuple[Recipe, Pseudonyms]


def _start(recipe: Recipe, pseudonyms: Pseudonyms, until: Connection) -> None:
    global _worker  # a worker process is set up once, before it does anything
    _worker = (recipe, pseudonyms)
    threading.Thread(target=_end_with, args=(until,), daemon=True).start()
    bound_memory()
    # Native decoders write to stderr, quoting the file; the outcome says what is needed.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def bound_memory() -> None:
    """Let an item have half of the machine's memory, and tell glibc to reuse freed buffers.

    The bound is the same however many workers there are, so an item fails or not for its own sake. Without the reuse
    every 512 x 512 slice costs some 870 page faults, which is half of the worker's time (measured).
    """
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with suppress(ValueError, OSError):  # a lower bound stands already
        resource.setrlimit(resource.RLIMIT_DATA, (half, half))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        mallopt(-3, 1 << 25)
        mallopt(-1, 1 << 27)


def _end_with(pipe: Connection) -> None:
    wait([pipe])
    os._exit(1)


def _work(item: Item) -> Outcome:
    return _read(item, *_worker)


def _read(item: Item, recipe: Recipe, pseudonyms: Pseudonyms) -> Outcome:
    """Read an item, again where it changed meanwhile: half of one file and half of the next is nobody's image."""
    for _ in range(_TRIES):
        before = item.fingerprint()
        outcome = _read_once(item, recipe, pseudonyms)
        if item.fingerprint() == before:
            return outcome
    return UNSTEADY


def _read_once(item: Item, recipe: Recipe, pseudonyms: Pseudonyms) -> Outcome:
    try:
        return item.read(recipe, pseudonyms)
    except OSError as error:
        if error.errno is None:  # Pillow's, of what is in the file
            return Rejection("damaged, or of an unknown kind", str(error)[:500])
        return Rejection("cannot be read", error.strerror or "", passing=True)
    except MemoryError:
        return NO_MEMORY
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an item must never end an ingest, and a decoder in Rust panics (PyO3)
        return Rejection("damaged", repr(error)[:500])
