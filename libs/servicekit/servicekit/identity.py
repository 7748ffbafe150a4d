"""Who is calling: resolved by the server interceptor from headers that only Envoy and our services can set."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from servicekit.errors import forbidden, unauthenticated

USER_HEADER = "x-dlmesh-user"
ADMIN_HEADER = "x-dlmesh-admin"
SECRET_HEADER = "x-dlmesh-secret"
SERVICE_HEADER = "x-dlmesh-service"
JOB_HEADER = "x-dlmesh-job"
JOB_TOKEN_HEADER = "x-dlmesh-job-token"


@dataclass(frozen=True)
class Identity:
    """A user behind the gateway, a service of the platform, or a worker that may speak for one job."""

    user: str
    is_admin: bool = False
    job_id: str | None = None
    is_service: bool = False

    @classmethod
    def service(cls, name: str) -> Identity:
        """A service acting for itself: sees and changes all."""
        return cls(user=name, is_admin=True, is_service=True)

    def may_access(self, owner: str) -> bool:
        """True for an administrator, a service, and the owner."""
        return self.is_admin or self.is_service or (self.job_id is None and self.user == owner)

    def require_access(self, kind: str, name: str, owner: str) -> None:
        """403 unless the caller may see and change what `owner` owns."""
        if not self.may_access(owner):
            raise forbidden(f"{kind} {name!r} belongs to another user", metadata={"kind": kind, "name": name})

    def require_admin(self, action: str) -> None:
        """403 unless the caller is an administrator."""
        if not self.is_admin:
            raise forbidden(f"only an administrator may {action}")

    def require_service(self) -> None:
        """403 unless the caller is a service of the platform."""
        if not self.is_service:
            raise forbidden("this call is for services of the platform only")

    def require_job(self, job_id: str) -> None:
        """403 unless the caller is a worker of `job_id` (or a service)."""
        if not self.is_service and self.job_id != job_id:
            raise forbidden(f"this worker may not report for job {job_id!r}")


_current: ContextVar[Identity | None] = ContextVar("dlmesh_identity", default=None)


def current_identity() -> Identity:
    """The caller of the RPC being served, or what `acting_as` set."""
    identity = _current.get()
    if identity is None:
        raise unauthenticated("no credentials were given")
    return identity


@contextmanager
def acting_as(identity: Identity) -> Iterator[Identity]:
    """Make `identity` the current one, for loops and tests."""
    token = _current.set(identity)
    try:
        yield identity
    finally:
        # A stream that its caller breaks off is ended by another task, whose current one it never was.
        with suppress(ValueError):
            _current.reset(token)


def job_token(secret: str, job_id: str) -> str:
    """The token with which a worker of `job_id` reports; the interceptor refuses it everywhere else."""
    return hmac.new(secret.encode(), f"job:{job_id}".encode(), hashlib.sha256).hexdigest()


def identity_from_headers(headers: Mapping[str, str], secret: str) -> Identity:
    """Resolve the caller; 401 unless the headers carry the platform's secret or a valid worker token."""
    job_id = headers.get(JOB_HEADER)
    if job_id is not None:
        if hmac.compare_digest(headers.get(JOB_TOKEN_HEADER, ""), job_token(secret, job_id)):
            return Identity(user=f"job:{job_id}", job_id=job_id)
        raise unauthenticated("the worker token does not belong to this job")
    if not hmac.compare_digest(headers.get(SECRET_HEADER, ""), secret):
        raise unauthenticated("no credentials were given")
    # A service that forwards its caller acts with the caller's rights; one that speaks for itself names no user.
    user = headers.get(USER_HEADER)
    if user:
        return Identity(user=user, is_admin=headers.get(ADMIN_HEADER) == "1")
    service = headers.get(SERVICE_HEADER)
    if service:
        return Identity.service(service)
    raise unauthenticated("no credentials were given")


def headers_for(identity: Identity, secret: str, service: str) -> tuple[tuple[str, str], ...]:
    """Metadata with which `service` calls a peer on behalf of `identity`."""
    headers = [(SECRET_HEADER, secret)]
    if identity.is_service:
        headers.append((SERVICE_HEADER, service))
    else:
        headers += [(USER_HEADER, identity.user), (ADMIN_HEADER, "1" if identity.is_admin else "0")]
    return tuple(headers)
