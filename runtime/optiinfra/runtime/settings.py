"""All settings of a process, read once: defaults, then the environment (`OPTIINFRA_…`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tenant import Role

_PREFIX = "OPTIINFRA_"


class Settings(BaseSettings):
    """Where the stores are and how this process behaves; the fleet itself stands in `config`.

    A store's URL left out means "embedded": `optiinfra up` starts it in `home`. URLs hold
    passwords, so they are not shown.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True
    )

    home: Path = Path(".optiinfra")
    config: Path | None = None
    policy: Path | None = None
    nats_url: str | None = Field(default=None, repr=False)
    postgres_url: str | None = Field(default=None, repr=False)
    clickhouse_url: str | None = Field(default=None, repr=False)
    qdrant_url: str | None = Field(default=None, repr=False)
    operator_nats_url: str | None = Field(default=None, repr=False)
    redis_url: str | None = Field(default=None, repr=False)
    api_url: str | None = None
    token: SecretStr | None = None
    portal_host: str = "127.0.0.1"
    portal_port: int = Field(default=8088, ge=0, le=65_535)
    portal_allow_remote: bool = False
    public_url: str | None = None
    sign_in_allow: dict[str, Role] = Field(default_factory=dict)
    sign_in_tenant: str | None = None
    oidc_name: str = Field(default="google", pattern=r"^[a-z][a-z0-9-]{0,31}$")
    oidc_issuer: str = "https://accounts.google.com"
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None
    github_url: str = "https://github.com"
    github_api_url: str = "https://api.github.com"
    github_client_id: str | None = None
    github_client_secret: SecretStr | None = None
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8089, ge=0, le=65_535)
    gateway_admin_host: str = "127.0.0.1"
    gateway_admin_port: int = Field(default=0, ge=0, le=65_535)
    gateway_admin_token: SecretStr | None = None
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    log_level: str = "info"
    log_json: bool | None = None


def load_settings(**given: object) -> Settings:
    """Settings with what the command line gave on top (None means "not given").

    Raises `Rejected` naming the first bad key and where it can be set.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise Rejected(
            f"setting {key!r}: {first['msg']}",
            hint=f"set {_PREFIX}{key.upper()} or --{key.replace('_', '-')} to a valid value",
        ) from invalid
