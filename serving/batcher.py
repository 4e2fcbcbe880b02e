"""Dynamic batching: volumes of all requests run through the network together, none waiting long for company.

The network has one thread. While it runs, volumes gather, so under load batches form by themselves. An idle network
starts at once where the last batch was a single volume, and waits for as many as came together last time, for
``max_wait_s`` at most, where it was not. A batch is never larger than what the network runs within ``max_batch_s``, nor
than what its engine gains by: on a CPU one volume after the other is fastest.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from covidnet.inference.engine import Outputs
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
        run: the network, ``uint8 (B, 1, D, H, W)`` to `Outputs`.
        max_batch: volumes per run, as many as the engine gains by.
        max_wait_s: how long the first volume of a batch may wait for others while the network is idle.
        max_batch_s: how long one run may take, which `warm` turns into a limit of its size.
    """

    def __init__(
        self, run: Callable[[np.ndarray], Outputs], *, max_batch: int, max_wait_s: float, max_batch_s: float
    ) -> None:
        self._run = run
        self._max_wait_s = max_wait_s
        self._max_batch_s = max_batch_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._queue: SimpleQueue[_Waiting] = SimpleQueue()
        self._expected = 1
        self.max_batch = max_batch

    def warm(self, size: tuple[int, int, int]) -> None:
        """Run each batch size: engines prepare themselves at the first run of a shape, which no caller should wait for.

        Sizes that take longer than ``max_batch_s`` are given up.

        Args:
            size: ``(D, H, W)``.
        """
        for count in range(1, self.max_batch + 1):
            batch = np.zeros((count, 1, *size), np.uint8)
            self._thread.submit(self._run, batch).result()
            start = time.perf_counter()
            self._thread.submit(self._run, batch).result()
            if count > 1 and time.perf_counter() - start > self._max_batch_s:
                self.max_batch = count - 1
                return

    async def submit(self, volume: np.ndarray) -> Row:
        """The answer for ``uint8 (D, H, W)``; one whose caller is cancelled while it waits is never run."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(volume, loop.create_future(), time.perf_counter())
        self._queue.put(waiting)
        self._thread.submit(self._run_waiting, loop)  # finds nothing where an earlier one took this volume along
        with metrics.QUEUE.track_inprogress():
            row = await waiting.future
        metrics.phase("queue", row.queue_s)
        traces.phase("inference", row.inference_s)
        return row

    def _run_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        """One batch, in the network's thread: the next one starts without waiting for the event loop."""
        batch = self._gather()
        if not batch:
            return
        start = time.perf_counter()
        try:
            found: Outputs | Exception = self._run(np.stack([waiting.volume for waiting in batch])[:, None])
        except Exception as error:  # whatever the engine raises belongs to those who wait
            found = error
        loop.call_soon_threadsafe(_answer, batch, found, start, time.perf_counter() - start)

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
