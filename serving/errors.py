"""Why a request isn't answered: one class per reason, with its HTTP and gRPC status.

Messages name what was expected and what was found in numbers and types, never the caller's own text: a request may
carry patient data, and an error ends up in logs.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from grpc import StatusCode

from covidnet.errors import CovidnetError, fault_of_machine

RETRY_AFTER_S = 1

_log = logging.getLogger(__name__)


class Refused(CovidnetError):
    """A request that gets an error for an answer."""

    outcome: ClassVar[str]
    http_status: ClassVar[int]
    grpc_status: ClassVar[StatusCode]


class Invalid(Refused):
    """The request isn't what the protocol or the model expects."""

    outcome = "invalid"
    http_status = 400
    grpc_status = StatusCode.INVALID_ARGUMENT


class NoSuchModel(Refused):
    """Another model's name."""

    outcome = "invalid"
    http_status = 404
    grpc_status = StatusCode.NOT_FOUND


class Unauthenticated(Refused):
    """No token, or not one of this server's."""

    outcome = "invalid"
    http_status = 401
    grpc_status = StatusCode.UNAUTHENTICATED


class CrossOrigin(Refused):
    """A page of another site sent it."""

    outcome = "invalid"
    http_status = 403
    grpc_status = StatusCode.PERMISSION_DENIED


class TooSlow(Refused):
    """The deadline passed, whether the body didn't arrive or the work wasn't done."""

    outcome = "late"
    http_status = 408
    grpc_status = StatusCode.DEADLINE_EXCEEDED


class TooLarge(Refused):
    """The body is above the route's limit."""

    outcome = "invalid"
    http_status = 413
    grpc_status = StatusCode.RESOURCE_EXHAUSTED


class UnknownFormat(Refused):
    """An uploaded file of no format that is read here."""

    outcome = "invalid"
    http_status = 415
    grpc_status = StatusCode.INVALID_ARGUMENT


class Unreadable(Refused):
    """The file is of a known format, and is no usable chest CT."""

    outcome = "unreadable"
    http_status = 422
    grpc_status = StatusCode.INVALID_ARGUMENT


class Busy(Refused):
    """The queue is full; the client may try again."""

    outcome = "busy"
    http_status = 429
    grpc_status = StatusCode.RESOURCE_EXHAUSTED


class Draining(Refused):
    """The server is about to stop and takes no new work."""

    outcome = "draining"
    http_status = 503
    grpc_status = StatusCode.UNAVAILABLE


class UnknownRequest(Refused):
    """Feedback for an answer that is not kept here."""

    outcome = "invalid"
    http_status = 404
    grpc_status = StatusCode.NOT_FOUND


class Conflict(Refused):
    """Feedback that contradicts an earlier one."""

    outcome = "invalid"
    http_status = 409
    grpc_status = StatusCode.ALREADY_EXISTS


class StoreUnavailable(Refused):
    """Feedback can't be written: the disk is full, or the database away."""

    outcome = "failed"
    http_status = 503
    grpc_status = StatusCode.UNAVAILABLE


class NoRoom(Refused):
    """A scan can't be laid down to be read: the disk is full or broken."""

    outcome = "failed"
    http_status = 503
    grpc_status = StatusCode.UNAVAILABLE


@contextmanager
def laying_down() -> Iterator[None]:
    """Where scans are written to disk: a disk that refuses is no fault of the scan.

    Raises:
        NoRoom: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        fault = fault_of_machine(error)
        if fault is None:
            raise
        _log.error("no scan can be laid down to be read: %s", fault)
        raise NoRoom(f"the server can't read scans at present: {fault}") from None
