"""The one error type of the platform.

Domain and use cases raise `ServiceError`; the server interceptor turns it into a `google.rpc.Status` with an
`ErrorInfo`, and Envoy turns that into the JSON body. There is no second table of codes anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes by their canonical numbers (the HTTP status Envoy answers stands beside each)."""

    INVALID_ARGUMENT = 3  # 400
    DEADLINE_EXCEEDED = 4  # 504
    NOT_FOUND = 5  # 404
    ALREADY_EXISTS = 6  # 409
    PERMISSION_DENIED = 7  # 403
    RESOURCE_EXHAUSTED = 8  # 429: try again later; 413, through http_code
    ABORTED = 10  # 409: in use, or not possible in the present state
    OUT_OF_RANGE = 11  # 416, through http_code
    UNIMPLEMENTED = 12  # 501
    INTERNAL = 13  # 500
    UNAVAILABLE = 14  # 503
    UNAUTHENTICATED = 16  # 401


class ServiceError(Exception):
    """A refusal that the caller can act on.

    `message` is a sentence for a person, `reason` an UPPER_SNAKE word for a program, `metadata` its parameters.
    `http_code` overrides the HTTP status that belongs to `code`; `retry_after_seconds` is the answer's `Retry-After`.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        http_code: int | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        # File names need not be UTF-8, what is sent must be.
        self.message = sendable(message)
        super().__init__(self.message)
        self.code = code
        self.reason = reason
        self.metadata = {name: sendable(value) for name, value in (metadata or {}).items()}
        self.http_code = http_code
        self.retry_after_seconds = retry_after_seconds


def sendable(text: str) -> str:
    """`text` with escapes for what UTF-8 cannot say, such as bytes of file names."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def invalid(field: str, value: object, allowed: str | Iterable[str], *, reason: str = "INVALID_FIELD") -> ServiceError:
    """400: `field` (in its REST spelling) holds `value`; `allowed` says what it may hold."""
    options = allowed if isinstance(allowed, str) else "one of " + (", ".join(allowed) or "(none)")
    shown = _shorten(value)
    return ServiceError(
        Code.INVALID_ARGUMENT,
        reason,
        f"{field}: {shown} is not valid; allowed: {options}",
        {"field": field, "value": shown, "allowed": options},
    )


def renamed(error: ServiceError, field: str, *, shown_as: str = "") -> ServiceError:
    """An `invalid` of a peer, about what its caller knows as `field` (`shown_as` in the message)."""
    message = error.message.removeprefix(f"{error.metadata.get('field', '')}: ")
    metadata = {**error.metadata, "field": field}
    return ServiceError(error.code, error.reason, f"{shown_as or field}: {message}", metadata, error.http_code)


def not_found(kind: str, name: str) -> ServiceError:
    """404: there is no `kind` called `name`."""
    return ServiceError(
        Code.NOT_FOUND, "NOT_FOUND", f"{kind} {_shorten(name)} does not exist", {"kind": kind, "name": name}
    )


def already_exists(kind: str, name: str, *, can_be_deleted: bool = True) -> ServiceError:
    """409: a `kind` called `name` exists already."""
    way_out = "choose another name or delete it first" if can_be_deleted else "choose another name"
    return ServiceError(
        Code.ALREADY_EXISTS,
        "ALREADY_EXISTS",
        f"{kind} {_shorten(name)} exists already; {way_out}",
        {"kind": kind, "name": name},
    )


def in_use(kind: str, name: str, by: str) -> ServiceError:
    """409: `name` cannot be deleted or changed because `by` uses it."""
    return ServiceError(
        Code.ABORTED, "IN_USE", f"{kind} {_shorten(name)} is in use by {by}", {"kind": kind, "name": name, "by": by}
    )


def conflict(message: str, *, reason: str = "CONFLICT", metadata: Mapping[str, str] | None = None) -> ServiceError:
    """409: not possible in the present state."""
    return ServiceError(Code.ABORTED, reason, message, metadata)


def forbidden(message: str, *, metadata: Mapping[str, str] | None = None) -> ServiceError:
    """403: the caller is known but may not do this."""
    return ServiceError(Code.PERMISSION_DENIED, "FORBIDDEN", message, metadata)


def unauthenticated(message: str) -> ServiceError:
    """401: the caller is not known."""
    return ServiceError(Code.UNAUTHENTICATED, "UNAUTHENTICATED", message)


def out_of_range(field: str, value: object, allowed: str) -> ServiceError:
    """416: a page that lies outside the list."""
    return ServiceError(
        Code.OUT_OF_RANGE,
        "OUT_OF_RANGE",
        f"{field}: {value!r} is out of range; allowed: {allowed}",
        {"field": field, "value": str(value), "allowed": allowed},
        http_code=416,
    )


def too_large(field: str, size: object, allowed: str) -> ServiceError:
    """413: what `field` holds is larger than ever taken; `size` says how much that is, `allowed` what is taken."""
    return ServiceError(
        Code.RESOURCE_EXHAUSTED,
        "TOO_LARGE",
        f"{field}: {size} is too large; allowed: {allowed}",
        {"field": field, "value": str(size), "allowed": allowed},
        http_code=413,
    )


def too_many(message: str, *, retry_after_seconds: int = 1, metadata: Mapping[str, str] | None = None) -> ServiceError:
    """429: there is no room now; `message` says of what there is too much, and how much there may be."""
    return ServiceError(Code.RESOURCE_EXHAUSTED, "TOO_MANY", message, metadata, retry_after_seconds=retry_after_seconds)


def timed_out(message: str, *, metadata: Mapping[str, str] | None = None) -> ServiceError:
    """504: it was begun and took longer than it may; `message` names what and its time."""
    return ServiceError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message, metadata)


def _shorten(value: object, limit: int = 200) -> str:
    """Quote a value for a message; hostile input must not make a message of megabytes."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
