import asyncio
import threading
import time

import numpy as np
import pytest

from covidnet.inference.engine import Engine, Outputs
from serving.batcher import Batcher, Row

SIZE = (2, 2, 2)


class Network:
    """Answers with the first voxel of each volume, and notes the size of every batch; large ones may take long."""

    name, size = "test", SIZE

    def __init__(self, slow_from: int = 99, batch: int = 4, lanes: int = 1) -> None:
        self.slow_from = slow_from
        self.batch = batch
        self.lanes = lanes
        self.alone: list[bool] = []
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.asked = threading.Event()

    def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
        self.alone.append(alone)
        self.asked.set()
        self.free.wait()
        self.batches.append(len(batch))
        if len(batch) >= self.slow_from:
            time.sleep(0.7)
        first = batch[:, 0, 0, 0, :1].astype(np.float32)
        return Outputs(first, first / 255, np.zeros((len(batch), 1, 1, 1, 1), np.float32))


def batcher(network: Engine, max_wait_s: float = 0.0, max_batch_s: float = 1.0) -> Batcher:
    return Batcher(network, max_wait_s=max_wait_s, max_batch_s=max_batch_s)


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
    rows = asyncio.run(submit_while_busy(batcher(network), network, range(10)))
    assert [int(row.logits[0]) for row in rows] == list(range(10))
    assert network.batches == [1, 4, 4, 1]


def test_the_next_batch_starts_while_the_event_loop_is_busy() -> None:
    network = Network(batch=1)

    async def busy() -> int:
        made = batcher(network)
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


def test_each_lane_runs_a_volume_of_its_own_and_knows_whether_it_is_alone() -> None:
    network = Network(batch=2, lanes=2)

    async def three() -> list[bool]:
        made = batcher(network)
        network.free.clear()
        tasks = []
        for value in range(3):
            tasks.append(asyncio.create_task(made.submit(volume(value))))
            await asyncio.sleep(0.05)
        begun = list(network.alone)
        network.free.set()
        rows = await asyncio.gather(*tasks)
        assert [int(row.logits[0]) for row in rows] == [0, 1, 2]
        await made.submit(volume(3))
        return begun

    assert asyncio.run(three()) == [True, False]  # the third waits for a lane
    assert network.batches == [1, 1, 1, 1]
    assert network.alone[-1]


def test_a_single_volume_is_not_kept_waiting_for_company() -> None:
    network = Network()

    async def one_after_the_other() -> None:
        made = batcher(network, max_wait_s=3600)
        for value in range(3):
            await made.submit(volume(value))

    asyncio.run(asyncio.wait_for(one_after_the_other(), 10))
    assert network.batches == [1, 1, 1]


def test_where_others_came_along_last_time_a_volume_waits_for_them_and_no_longer_than_the_bound() -> None:
    network = Network()

    async def two_twice_then_one() -> float:
        made = batcher(network, max_wait_s=1.0)
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
        made = batcher(network)
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
    class FailsOnce(Network):
        def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
            if not self.alone:
                self.alone.append(alone)
                raise RuntimeError
            return super().run(batch, alone)

    async def twice() -> Row:
        made = batcher(FailsOnce())
        with pytest.raises(RuntimeError):
            await made.submit(volume(1))
        return await made.submit(volume(2))

    assert int(asyncio.run(twice()).logits[0]) == 2


def test_batches_are_no_larger_than_what_runs_within_the_bound() -> None:
    made = batcher(Network(slow_from=3), max_batch_s=0.6)
    made.warm(SIZE)
    assert made.max_batch == 2
    quick = batcher(Network(), max_batch_s=0.6)
    quick.warm(SIZE)
    assert quick.max_batch == 4
