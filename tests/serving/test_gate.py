import asyncio

import pytest

from serving.errors import Busy, Draining
from serving.gate import Gate


def test_admits_as_many_requests_as_fit_and_again_after_one_leaves() -> None:
    gate = Gate(max_requests=2, max_bytes=100, max_client_requests=9)
    with gate.admit(1):
        with gate.admit(1), pytest.raises(Busy), gate.admit(1):
            pass
        with gate.admit(1):
            pass


def test_admits_as_many_bytes_as_fit() -> None:
    gate = Gate(max_requests=9, max_bytes=100, max_client_requests=9)
    with gate.admit(60), pytest.raises(Busy), gate.admit(41):
        pass
    with gate.admit(60), gate.admit(40):
        pass


def test_one_client_leaves_room_for_others() -> None:
    gate = Gate(max_requests=9, max_bytes=100, max_client_requests=2)
    with gate.admit(1, "a"), gate.admit(1, "a"):
        with pytest.raises(Busy, match="your requests"), gate.admit(1, "a"):
            pass
        with gate.admit(1, "b"):
            pass
    with gate.admit(1, "a"):
        pass


def test_clients_that_cant_be_told_apart_share_all_places() -> None:
    gate = Gate(max_requests=2, max_bytes=100, max_client_requests=1)
    with gate.admit(1), gate.admit(1):
        pass


def test_a_failing_request_gives_its_place_back() -> None:
    gate = Gate(max_requests=1, max_bytes=10, max_client_requests=9)
    with pytest.raises(ZeroDivisionError), gate.admit(10):
        _ = 1 / 0
    with gate.admit(10):
        pass


def test_a_closed_gate_lets_nothing_in_and_tells_when_the_last_request_left() -> None:
    async def drain() -> list[str]:
        gate = Gate(max_requests=2, max_bytes=100, max_client_requests=9)
        events: list[str] = []

        async def work() -> None:
            with gate.admit(1):
                await asyncio.sleep(0.05)
                events.append("worked")

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        gate.close()
        with pytest.raises(Draining), gate.admit(1):
            pass
        await gate.empty()
        events.append("empty")
        await task
        return events

    assert asyncio.run(drain()) == ["worked", "empty"]
