"""Classify many scans into a file, so that an interrupted run goes on where it stopped and machines share the work.

Answers are appended as JSON lines, one per scan and flushed at once: that file is what a resumed run reads, and no answer in
it is written again before all are there, so that none can be lost. A table (CSV or Parquet) is made from it at the end. A
scan is named by its number in the list and by a pseudonym of its path, never by the path, which may carry a patient's name.
"""

import csv
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from covidnet import folder
from covidnet.data.sources import pseudonym
from covidnet.errors import UsageError
from covidnet.progress import progress

TABLES = (".csv", ".parquet")
Answers = Callable[[Sequence[Path], Sequence[int]], Iterator[dict[str, Any]]]


def classify(
    scans: Sequence[tuple[int, Path]], out: Path, version: str, answers: Answers, precision: str = "float32"
) -> dict[str, int]:
    """Answer the scans that ``out`` has no answer for yet.

    Args:
        scans: number in the user's list, and path, in the order of the answers.
        out: ``.jsonl``, or ``.csv`` or ``.parquet``, whose lines are kept beside it under the ending ``.jsonl``.
        version: of the bundle.
        precision: in which the bundle answers.
        answers: given scans and their ordinals, yields an answer each; see `covidnet.inference.predict.predict`.

    Returns:
        counts: ``scans``, ``resumed`` (answered by an earlier run), ``failed``.

    Raises:
        UsageError: another ending, answers of another bundle or precision, or other things, in the file, or another run is
            writing to it.
    """
    if out.suffix not in (".jsonl", *TABLES):
        raise UsageError(f"--out {out}: expected a name that ends in .jsonl, .csv or .parquet")
    if out.suffix == ".parquet":
        _arrow()
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.with_suffix(".jsonl")
    with _opened(lines) as stream:
        done = _answered(stream, lines, version, precision)
        left = [(number, path) for number, path in scans if _name(path) not in done]
        failed = written = 0
        try:
            with progress("predict", len(scans), len(scans) - len(left)) as advance:
                found = answers([path for _, path in left], [number for number, _ in left])
                for (_, path), answer in zip(left, found, strict=True):
                    stream.write(json.dumps({"id": _name(path), **answer}) + "\n")
                    stream.flush()
                    written += 1
                    failed += "error" in answer
                    advance(note=f"{failed} failed" if failed else "")
        except KeyboardInterrupt:
            kept = len(scans) - len(left) + written
            print(
                f"covidnet: interrupted; {lines} has {kept} of {len(scans)}, the same command goes on", file=sys.stderr
            )
            raise
        answers_of_all = _without_old_failures(stream, lines)
        if out.suffix in TABLES:
            _write_table(answers_of_all, out)
    return {"scans": len(scans), "resumed": len(scans) - len(left), "failed": failed}


def _name(path: Path) -> str:
    return pseudonym(str(path))


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The file of lines, for this process alone."""
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{path}: another run is writing to it; give each run (each shard) its own --out"
            ) from None
        yield stream


def _answered(stream: IO[str], path: Path, version: str, precision: str) -> set[str]:
    """Names of the scans with an answer; takes out what a killed run left torn."""
    stream.seek(0)
    text = stream.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(path, len(whole.encode()))
    try:
        done = [answer for answer in map(json.loads, whole.splitlines()) if "error" not in answer]
    except ValueError:
        raise UsageError(f"{path} has lines that are no answers; give another --out, or mend it") from None
    sources = {_source(answer.get("bundle"), answer.get("precision", "float32")) for answer in done}
    if other := sources - {_source(version, precision)}:
        raise UsageError(
            f"{path} has answers of bundle {other.pop()}, this one is {_source(version, precision)}; "
            "give another --out, or remove the file"
        )
    return {answer["id"] for answer in done}


def _without_old_failures(stream: IO[str], path: Path) -> list[dict[str, Any]]:
    """The answers, one line each; failures that passed, or failed again, later on are taken out of the file, too."""
    stream.seek(0)
    answers = [json.loads(line) for line in stream]
    last = {answer["id"]: place for place, answer in enumerate(answers)}
    kept = [one for place, one in enumerate(answers) if "error" not in one or last[one["id"]] == place]
    if kept != answers:
        with folder.replacing(path) as partial:
            partial.write_text("".join(json.dumps(answer) + "\n" for answer in kept))
    return kept


def _source(version: object, precision: str) -> str:
    return str(version) if precision == "float32" else f"{version} in {precision}"


def _write_table(answers: Sequence[dict[str, Any]], out: Path) -> None:
    """One row per scan: a column per class's probability, flags joined by semicolons, seconds by phase."""
    rows = [_row(answer) for answer in answers]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with folder.replacing(out) as partial:
        if out.suffix == ".csv":
            with partial.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, names, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        else:
            arrow = _arrow()
            table = arrow.table({name: [row.get(name) for row in rows] for name in names})
            arrow.parquet.write_table(table, partial)


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    nested = {"probabilities": "probability_{}", "seconds": "{}_s", "overlays": "overlay_{}"}
    row: dict[str, Any] = {}
    for name, value in answer.items():
        if name in nested:
            row |= {nested[name].format(key): part for key, part in value.items()}
        elif name == "flags":
            row[name] = "; ".join(value)
        elif name != "overlay":  # is among the overlays
            row[name] = value
    return row


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError("--out with .parquet needs pyarrow; pip install 'covidnet3d[parquet]', or use .csv") from None
    return pyarrow
