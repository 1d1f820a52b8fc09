"""Many files at once: worker processes that read, hash and render, and that may crash without ending an ingest."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path

from wardround_client.intake.dicom.deidentify import NO_MEMORY, Instance, Pseudonyms, instance_of
from wardround_client.intake.dicom.read import Recipe, Rejection

Outcome = Instance | Rejection

CHUNK_BYTES = 1 << 22
"""About how many bytes of images one message of a worker holds; few enough that memory stays flat."""

CRASHED = Rejection("a decoder crashed on Pixel Data (7FE0,0010)", "the process died; the file may be malicious")
AGAIN = (CRASHED, NO_MEMORY)
"""What is believed only of a file that had the machine to itself."""

AHEAD = 3
"""Chunks in flight a worker: enough that none waits, few enough that memory stays flat."""


def chunk_files(recipe: Recipe) -> int:
    """How many files a worker does between two messages."""
    image_bytes = 2 * recipe.channels * recipe.image_size_px**2
    return max(1, min(16, CHUNK_BYTES // image_bytes))


def outcomes(
    files: Iterable[Path], recipe: Recipe, pseudonyms: Pseudonyms, workers: int | None
) -> Iterator[tuple[Path, Outcome]]:
    """What becomes of each file, in the order given, whatever the number of workers.

    A native decoder that crashes takes its worker along: the files that the worker had are then done one by one, each
    in a process of its own, and the one that crashes again is rejected. So is a file for which memory ran out: what
    others needed at that moment decides about nobody's file.

    Args:
        files: absolute paths; consumed only as fast as results are taken.
        recipe: how images are made.
        pseudonyms: the hospital's keyed hashes.
        workers: processes; None: one for each core; 1: this very process, which a crash would end.
    """
    if workers is not None and workers <= 1:
        for file in files:
            yield file, instance_of(file, recipe, pseudonyms)
        return
    count = workers or len(os.sched_getaffinity(0))
    todo = iter(files)
    size = chunk_files(recipe)
    flying: deque[tuple[list[Path], Future[list[Outcome]]]] = deque()
    pool = _Pool(count, recipe, pseudonyms)
    try:
        while True:
            while len(flying) < AHEAD * count and (chunk := list(islice(todo, size))):
                flying.append((chunk, pool.submit(chunk)))
            if not flying:
                return
            chunk, future = flying.popleft()
            try:
                results = future.result()
            except BrokenProcessPool:
                results = [CRASHED for _ in chunk]
            if any(outcome in AGAIN for outcome in results):
                pool.end()
                done = zip(chunk, results, strict=True)
                results = [_alone(file, recipe, pseudonyms) if first in AGAIN else first for file, first in done]
                pool = _Pool(count, recipe, pseudonyms)
                flying = deque((later, pool.submit(later)) for later, _ in flying)
            yield from zip(chunk, results, strict=True)
    finally:
        pool.end()


def _alone(file: Path, recipe: Recipe, pseudonyms: Pseudonyms) -> Outcome:
    pool = _Pool(1, recipe, pseudonyms)
    try:
        return pool.submit([file]).result()[0]
    except BrokenProcessPool:
        return CRASHED
    finally:
        pool.end()


class _Pool:
    """Worker processes, and a pipe: they end when its other end is closed.

    A pool of the standard library starts workers when work comes. One that starts at the very moment in which another
    crashes is never told to end, and the pool waits for it for ever (seen in one of 40 crashes, CPython 3.11).
    """

    def __init__(self, count: int, recipe: Recipe, pseudonyms: Pseudonyms) -> None:
        # Never fork: the caller may hold torch's or gRPC's threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._theirs, self._ours = context.Pipe(duplex=False)
        arguments = (recipe, pseudonyms, self._theirs)
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=arguments)

    def submit(self, files: list[Path]) -> Future[list[Outcome]]:
        """Raises nothing: where a worker has crashed already, the future does."""
        try:
            return self._pool.submit(_work, files)
        except BrokenProcessPool as error:
            broken: Future[list[Outcome]] = Future()
            broken.set_exception(error)
            return broken

    def end(self) -> None:
        """At once, whatever they are doing: it is wanted no more, or done again elsewhere."""
        self._ours.close()
        self._pool.shutdown(cancel_futures=True)
        self._theirs.close()


_worker: tuple[Recipe, Pseudonyms]


def _start(recipe: Recipe, pseudonyms: Pseudonyms, until: Connection) -> None:
    global _worker  # a worker process is set up once, before it does anything
    _worker = (recipe, pseudonyms)
    threading.Thread(target=_end_with, args=(until,), daemon=True).start()
    _keep_freed_memory()
    # Native decoders write to stderr, quoting the file; the outcome says what is needed.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed image buffers instead of giving each back to the kernel.

    Without this every 512 x 512 slice costs some 870 page faults, which is half of the worker's time (measured).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        mallopt(-3, 1 << 25)
        mallopt(-1, 1 << 27)


def _end_with(pipe: Connection) -> None:
    """When its other end is closed, by the pool or because the parent was killed, which cannot stop its workers."""
    wait([pipe])
    os._exit(1)


def _work(files: list[Path]) -> list[Outcome]:
    recipe, pseudonyms = _worker
    return [instance_of(file, recipe, pseudonyms) for file in files]
