import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from covidnet.inference.engine import Outputs
from serving.batcher import Batcher, Row

SIZE = (2, 2, 2)


class Network:
    """Answers with the first voxel of each volume, and notes the size of every batch; large ones may take long."""

    def __init__(self, slow_from: int = 99) -> None:
        self.slow_from = slow_from
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.asked = threading.Event()

    def run(self, batch: np.ndarray) -> Outputs:
        self.asked.set()
        self.free.wait()
        self.batches.append(len(batch))
        if len(batch) >= self.slow_from:
            time.sleep(0.7)
        first = batch[:, 0, 0, 0, :1].astype(np.float32)
        return Outputs(first, first / 255, np.zeros((len(batch), 1, 1, 1, 1), np.float32))


def batcher(run: Callable[[np.ndarray], Outputs], **changes: float) -> Batcher:
    settings = {"max_batch": 4, "max_wait_s": 0.0, "max_batch_s": 1.0, **changes}
    return Batcher(run, **settings)  # type: ignore[arg-type]


def volume(value: int) -> np.ndarray:
    return np.full(SIZE, value, np.uint8)


async def submit_while_busy(made: Batcher, network: Network, values: range) -> list[Row]:
    """The first one alone, and all others before it is answered."""
    network.free.clear()
    first = asyncio.create_task(made.submit(volume(values[0])))
    while not network.asked.is_set():
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(made.submit(volume(value))) for value in values[1:]]
    await asyncio.sleep(0)
    network.free.set()
    return list(await asyncio.gather(first, *others))


def test_volumes_that_wait_together_run_together_and_each_gets_its_own_answer() -> None:
    network = Network()
    rows = asyncio.run(submit_while_busy(batcher(network.run), network, range(10)))
    assert [int(row.logits[0]) for row in rows] == list(range(10))
    assert network.batches == [1, 4, 4, 1]


def test_the_next_batch_starts_while_the_event_loop_is_busy() -> None:
    network = Network()

    async def busy() -> int:
        made = batcher(network.run, max_batch=1)
        network.free.clear()
        tasks = [asyncio.create_task(made.submit(volume(value))) for value in range(3)]
        await asyncio.sleep(0)
        network.free.set()
        deadline = time.monotonic() + 10
        while len(network.batches) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)  # the loop stands still
        count = len(network.batches)
        await asyncio.gather(*tasks)
        return count

    assert asyncio.run(busy()) == 3


def test_a_single_volume_is_not_kept_waiting_for_company() -> None:
    network = Network()

    async def one_after_the_other() -> None:
        made = batcher(network.run, max_wait_s=3600)
        for value in range(3):
            await made.submit(volume(value))

    asyncio.run(asyncio.wait_for(one_after_the_other(), 10))
    assert network.batches == [1, 1, 1]


def test_where_others_came_along_last_time_a_volume_waits_for_them_and_no_longer_than_the_bound() -> None:
    network = Network()

    async def two_twice_then_one() -> float:
        made = batcher(network.run, max_wait_s=1.0)
        await submit_while_busy(made, network, range(3))
        first = asyncio.create_task(made.submit(volume(7)))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, made.submit(volume(8)))
        start = time.perf_counter()
        await made.submit(volume(9))
        return time.perf_counter() - start

    alone_s = asyncio.run(two_twice_then_one())
    assert network.batches == [1, 2, 2, 1]
    assert alone_s > 0.99


def test_a_volume_whose_caller_went_away_is_not_run() -> None:
    network = Network()

    async def leave() -> None:
        made = batcher(network.run)
        network.free.clear()
        running = asyncio.create_task(made.submit(volume(1)))
        await asyncio.sleep(0.05)
        left = asyncio.create_task(made.submit(volume(2)))
        stayed = asyncio.create_task(made.submit(volume(3)))
        await asyncio.sleep(0.05)
        left.cancel()
        network.free.set()
        assert int((await stayed).logits[0]) == 3
        await running

    asyncio.run(leave())
    assert network.batches == [1, 1]


def test_an_error_of_the_engine_reaches_those_who_wait_and_no_one_after() -> None:
    network = Network()

    def fails_once(batch: np.ndarray) -> Outputs:
        if not network.batches:
            network.batches.append(len(batch))
            raise RuntimeError
        return network.run(batch)

    async def twice() -> Row:
        made = batcher(fails_once)
        with pytest.raises(RuntimeError):
            await made.submit(volume(1))
        return await made.submit(volume(2))

    assert int(asyncio.run(twice()).logits[0]) == 2


def test_batches_are_no_larger_than_what_runs_within_the_bound() -> None:
    made = batcher(Network(slow_from=3).run, max_batch_s=0.6)
    made.warm(SIZE)
    assert made.max_batch == 2
    quick = batcher(Network().run, max_batch_s=0.6)
    quick.warm(SIZE)
    assert quick.max_batch == 4
