"""The seal on the test split: who looked at it, when, and with which models.

`test-uses.jsonl` lies beside the output folder of `evaluate`, one line per set of candidates. The same candidates on the
same dataset are one use, however often the report is written; newly trained candidates are another one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from covidnet import folder
from covidnet.errors import CovidnetError

LOG = "test-uses.jsonl"


@dataclass(frozen=True, slots=True)
class Use:
    """One reading of the test split.

    Args:
        time: UTC, ISO 8601.
        dataset: sha256 of the packed dataset.
        candidates: name to sha256 of the trained model's folder.
        git_revision: of the code.
    """

    time: str
    dataset: str
    candidates: dict[str, str]
    git_revision: str

    def same(self, dataset: str, candidates: Mapping[str, str]) -> bool:
        """Whether it read the same split with the same models."""
        return (self.dataset, self.candidates) == (dataset, dict(candidates))


def open_seal(log: Path, dataset: str, candidates: Mapping[str, str]) -> tuple[list[Use], bool]:
    """Record a reading of the test split, unless these candidates have read it already.

    Args:
        log: the file; made where it is missing.
        dataset: sha256.
        candidates: name to sha256.

    Returns:
        All uses of this dataset's test split, oldest first, and whether this is a new one.

    Raises:
        CovidnetError: the log is damaged.
    """
    uses = read(log)
    ours = [use for use in uses if use.dataset == dataset]
    if any(use.same(dataset, candidates) for use in ours):
        return ours, False
    use = Use(
        datetime.now(UTC).isoformat(timespec="seconds"), dataset, dict(candidates), folder.git_revision() or "unknown"
    )
    with folder.replacing(log) as partial:  # a full disk must not leave half a line
        partial.write_text("".join(json.dumps(asdict(one)) + "\n" for one in [*uses, use]))
    return [*ours, use], True


def read(log: Path) -> list[Use]:
    """Every use on record.

    Raises:
        CovidnetError: a line isn't one of `open_seal`'s.
    """
    if not log.is_file():
        return []
    try:
        return [Use(**json.loads(line)) for line in log.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise CovidnetError(
            f"{log} is damaged ({type(error).__name__}); it says how often the test split was read: restore it from a "
            "copy, or move it away and say in your report that the count is lost"
        ) from None
