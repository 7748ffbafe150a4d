"""Puts the gateway service together; nothing is started here."""

from __future__ import annotations

from pathlib import Path

from dlmesh.gateway.authz.v3.external_auth_pb2_grpc import add_AuthorizationServicer_to_server
from dlmesh.gateway.v1.gateway_pb2_grpc import (
    add_ConfigurationServiceServicer_to_server,
    add_PlatformHealthServiceServicer_to_server,
    add_SessionServiceServicer_to_server,
    add_UserServiceServicer_to_server,
)
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from servicekit.times import utc_now

from gateway_service.api.authorization import AuthorizationServicer
from gateway_service.api.configuration import ConfigurationServicer
from gateway_service.api.health import PlatformHealthServicer
from gateway_service.api.sessions import SessionServicer
from gateway_service.api.users import UserServicer
from gateway_service.clients.health import GrpcHealthProbe
from gateway_service.clients.settings import GrpcSettings
from gateway_service.envoy.endpoints import TritonEndpoints
from gateway_service.settings import GatewaySettings
from gateway_service.storage.accounts import DatabaseAccounts
from gateway_service.usecases.authenticate import Authenticator, VerifiedPasswords
from gateway_service.usecases.configuration import Configuration
from gateway_service.usecases.log_on import Sessions
from gateway_service.usecases.manage_users import Users, ensure_administrator
from gateway_service.usecases.platform_health import PlatformHealth

MIGRATIONS = Path(__file__).parent / "storage" / "migrations"


def build(settings: ServiceSettings, gateway: GatewaySettings | None = None) -> Application:
    """The application; `gateway` is read from the environment when it is not given."""
    gateway = gateway or GatewaySettings.from_environment(settings)
    database = Database(settings.database_url, "gateway")
    channels = Channels(settings)
    accounts = DatabaseAccounts(database)
    verified = VerifiedPasswords(gateway.credential_cache_seconds)
    authenticator = Authenticator(accounts, verified, utc_now, gateway.credential_cache_seconds)
    sessions = Sessions(accounts, utc_now, gateway.session_seconds)
    users = Users(accounts, verified, utc_now, gateway.admin_user)
    configuration = Configuration(GrpcSettings(channels), tuple(settings.peers), settings.home)
    health = PlatformHealth(GrpcHealthProbe(settings, channels))

    async def prepare() -> None:
        await database.migrate(MIGRATIONS)
        await ensure_administrator(
            accounts, utc_now, gateway.admin_user, gateway.admin_password, settings.home / "admin_password"
        )

    return Application(
        name="gateway",
        servicers=[
            (
                add_AuthorizationServicer_to_server,
                AuthorizationServicer(authenticator, settings.secret),
                "envoy.service.auth.v3.Authorization",
            ),
            (
                add_SessionServiceServicer_to_server,
                SessionServicer(sessions, gateway.session_seconds),
                "dlmesh.gateway.v1.SessionService",
            ),
            (
                add_ConfigurationServiceServicer_to_server,
                ConfigurationServicer(configuration),
                "dlmesh.gateway.v1.ConfigurationService",
            ),
            (
                add_PlatformHealthServiceServicer_to_server,
                PlatformHealthServicer(health),
                "dlmesh.gateway.v1.PlatformHealthService",
            ),
            (add_UserServiceServicer_to_server, UserServicer(users), "dlmesh.gateway.v1.UserService"),
        ],
        loops=[ReconcileLoop("triton endpoints", TritonEndpoints(settings.home).step, later_seconds=0.25)],
        databases=[database],
        channels=[channels],
        startup=[prepare],
        settings={"": gateway},
    )
