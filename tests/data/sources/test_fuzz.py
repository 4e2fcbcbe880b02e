import pytest

from benchmarks.fuzz_readers import fuzz


@pytest.mark.slow
def test_two_hundred_damaged_files_cost_no_process_no_time_and_no_memory() -> None:
    """`make fuzz` reads 10,000."""
    tallies, reasons = fuzz(200, seed=1)
    assert sum(tally.files for tally in tallies.values()) == 200
    assert sum(tally.refused for tally in tallies.values()) == reasons.total() > 40
    assert sum(tally.kept for tally in tallies.values()) > 20  # damage to what isn't read does no harm
    assert not any(tally.faults for tally in tallies.values())
