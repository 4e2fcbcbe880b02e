"""Dynamic batching: volumes of all requests run through the network together, none waiting long for company.

The network has a thread for each of its engine's lanes. While all are busy, volumes gather, so under load batches form by
themselves. An idle network starts at once where the last batch was a single volume, and waits for as many as came together
last time, for ``max_wait_s`` at most, where it was not. A batch is never larger than what the network runs within
``max_batch_s``, nor than what its engine gains by: on a CPU each lane is a core, which runs one volume after the other.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from covidnet.inference.engine import Engine, Outputs
from serving import metrics
from serving.monitoring import traces


@dataclass(frozen=True, slots=True)
class Row:
    """The network's answer for one volume.

    Args:
        logits: ``(K,)``.
        probabilities: ``(K,)``, calibrated.
        cam: ``(K, d, h, w)``.
        queue_s: seconds from submission to the start of its batch.
        inference_s: seconds of its batch.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    cam: np.ndarray
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    volume: np.ndarray
    future: asyncio.Future[Row]
    since: float


class Batcher:
    """Runs volumes; for use in one event loop.

    Args:
        engine: the network.
        max_wait_s: how long the first volume of a batch may wait for others while the network is idle.
        max_batch_s: how long one run may take, which `warm` turns into a limit of its size.
    """

    def __init__(self, engine: Engine, *, max_wait_s: float, max_batch_s: float) -> None:
        self._engine = engine
        self._max_wait_s = max_wait_s
        self._max_batch_s = max_batch_s
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="network")
        self._running = 0
        self._changing = threading.Lock()
        self._queue: SimpleQueue[_Waiting] = SimpleQueue()
        self._expected = 1
        self.max_batch = engine.batch // engine.lanes

    def warm(self, size: tuple[int, int, int]) -> None:
        """Run each batch size: engines prepare themselves at the first run of a shape, which no caller should wait for.

        Sizes that take longer than ``max_batch_s`` are given up.

        Args:
            size: ``(D, H, W)``.
        """
        for count in range(1, self.max_batch + 1):
            batch = np.zeros((count, 1, *size), np.uint8)
            self._threads.submit(self._engine.run, batch).result()
            start = time.perf_counter()
            self._threads.submit(self._engine.run, batch).result()
            if count > 1 and time.perf_counter() - start > self._max_batch_s:
                self.max_batch = count - 1
                break
        if self._engine.lanes > 1:
            self._threads.submit(self._engine.run, np.zeros((1, 1, *size), np.uint8), alone=False).result()

    async def submit(self, volume: np.ndarray) -> Row:
        """The answer for ``uint8 (D, H, W)``; one whose caller is cancelled while it waits is never run."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(volume, loop.create_future(), time.perf_counter())
        self._queue.put(waiting)
        self._threads.submit(self._run_waiting, loop)  # finds nothing where an earlier one took this volume along
        with metrics.QUEUE.track_inprogress():
            row = await waiting.future
        metrics.phase("queue", row.queue_s)
        traces.phase("inference", row.inference_s)
        return row

    def _run_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        """One batch, in a thread of the network: the next one starts without waiting for the event loop."""
        batch = self._gather()
        if not batch:
            return
        volumes = np.stack([waiting.volume for waiting in batch])[:, None]
        start = time.perf_counter()
        with self._taking_part() as alone:
            try:
                found: Outputs | Exception = self._engine.run(volumes, alone)
            except Exception as error:  # whatever the engine raises belongs to those who wait
                found = error
        loop.call_soon_threadsafe(_answer, batch, found, start, time.perf_counter() - start)

    @contextmanager
    def _taking_part(self) -> Iterator[bool]:
        """Whether this run is the only one, now and as far as is known."""
        with self._changing:
            self._running += 1
            alone = self._running == 1 and self._queue.empty()
        try:
            yield alone
        finally:
            with self._changing:
                self._running -= 1

    def _gather(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        closes = time.perf_counter() + self._max_wait_s
        with suppress(Empty):
            batch.append(self._queue.get_nowait())
            while len(batch) < self.max_batch:
                wait_s = closes - time.perf_counter() if len(batch) < self._expected else 0
                batch.append(self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait())
        self._expected = len(batch) or self._expected
        return [waiting for waiting in batch if not waiting.future.cancelled()]


def _answer(batch: list[_Waiting], found: Outputs | Exception, start: float, inference_s: float) -> None:
    """In the event loop, to those who still wait."""
    if isinstance(found, Outputs):
        metrics.PHASE_SECONDS.labels("inference").observe(inference_s)
        metrics.BATCH.observe(len(batch))
    for index, waiting in enumerate(batch):
        if waiting.future.done():
            continue
        if isinstance(found, Exception):
            waiting.future.set_exception(found)
            continue
        rows = (found.logits[index], found.probabilities[index], found.cam[index])
        waiting.future.set_result(Row(*rows, start - waiting.since, inference_s))
