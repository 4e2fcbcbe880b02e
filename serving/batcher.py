"""Dynamic batching: volumes of all requests run through the network together, none waiting long for company.

The network has one thread. While it runs, volumes gather, so under load batches form by themselves. An idle network
starts at once where the last batch was a single volume, and waits for as many as came together last time, for
``max_wait_s`` at most, where it was not. A batch is never larger than what the network runs within ``max_batch_s``.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from covidnet.inference.engine import Outputs
from serving import metrics


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
        max_batch: volumes per run.
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
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
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
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        waiting = _Waiting(volume, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._queue.put_nowait(waiting)
        with metrics.QUEUE.track_inprogress():
            row = await waiting.future
        metrics.phase("queue", row.queue_s)
        return row

    async def _serve(self) -> None:
        expected = 1
        while True:
            batch = await self._gather(expected)
            expected = len(batch)
            if batch:
                await self._answer(batch)

    async def _gather(self, expected: int) -> list[_Waiting]:
        batch = [await self._queue.get()]
        closes = asyncio.get_running_loop().time() + self._max_wait_s
        while len(batch) < self.max_batch:
            if self._queue.empty() and len(batch) >= expected:
                break
            try:
                async with asyncio.timeout_at(closes):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return [waiting for waiting in batch if not waiting.future.cancelled()]

    async def _answer(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        volumes = np.stack([waiting.volume for waiting in batch])[:, None]  # (B, 1, D, H, W)
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, volumes)
        except Exception as error:  # whatever the engine raises belongs to those who wait
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        inference_s = time.perf_counter() - start
        metrics.phase("inference", inference_s)
        metrics.BATCH.observe(len(batch))
        for index, waiting in enumerate(batch):
            if not waiting.future.done():
                waiting.future.set_result(
                    Row(
                        outputs.logits[index],
                        outputs.probabilities[index],
                        outputs.cam[index],
                        start - waiting.since,
                        inference_s,
                    )
                )
