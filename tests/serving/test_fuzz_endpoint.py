"""A short run of `benchmarks.fuzz_endpoint` against the server that the tests share."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.fuzz_endpoint import fuzz
from benchmarks.servers import Target

if TYPE_CHECKING:
    from conftest import Server


@pytest.mark.slow
def test_malformed_requests_get_no_5xx_and_no_echo_and_leave_the_server_well(server: "Server", tmp_path: Path) -> None:
    ports = [int(address.rpartition(":")[2]) for address in (server.http, server.grpc)]
    found = fuzz(Target(*ports, {}, server.process, server.log), 300, 0, tmp_path)
    assert found.examples == {}
    assert {"200", "400", "422"} <= {status for statuses in found.statuses.values() for status in statuses}
