"""Every setting, with its unit, default and reason. Flag over `QM_…` variable over `config.toml` over default.

Only cli and wiring read this; everybody else is given plain values.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from qm_proxy.errors import SettingsError

__all__ = ["Settings", "config_directory", "data_directory", "load"]


class Settings(BaseSettings):
    """What `serve` runs with. `python -m qm_proxy.settings` prints this as the table of the README."""

    model_config = SettingsConfigDict(env_prefix="QM_", extra="forbid", frozen=True)

    listen: str = Field(
        "127.0.0.1:11436", description="Where clients connect: host:port, [v6]:port, :port or unix:/path. Port 0: any."
    )
    upstream: str = Field(
        default_factory=lambda: os.environ.get("OLLAMA_HOST") or "http://127.0.0.1:11434",
        description="The Ollama behind the proxy, in any form OLLAMA_HOST takes, or unix:/path. Default: OLLAMA_HOST.",
    )
    console: str = Field("127.0.0.1:11437", description="Page, API, metrics and MCP: host:port, or off.")
    console_token: str | None = Field(None, description="Bearer token the console asks for; needed to bind it beyond loopback.")
    read_only: bool = Field(False, description="Page, API and MCP start and cancel no probes.")
    mcp_stateless: bool = Field(
        False, description="MCP 2025-11-25 without sessions: its clients live through a restart, but hear of no changes."
    )
    db: Path | None = Field(
        default_factory=lambda: data_directory() / "qm.db",
        description="SQLite file; `off` keeps the last exchanges in memory only.",
    )
    guard: Literal["observe", "cut"] = Field("observe", description="cut: end a stream that provably loops. observe: only tell.")
    workers: int = Field(1, ge=1, le=64, description="Relay processes that share the port. One carries some 50 k tokens/s.")
    capture_content: bool = Field(False, description="Store prompts and answers (redacted, capped). Off: only numbers.")
    redact: str | None = Field(
        None, description="A function of yours, module:name, that each captured text goes through as well: text in, text out."
    )
    excerpts: bool = Field(True, description="Findings keep ≤ 80 characters of evidence, locally. `--no-excerpts` keeps none.")
    grace: float = Field(10.0, ge=0, le=86400, description="Seconds that running streams get to end when the proxy stops.")
    ring: int = Field(2000, ge=10, le=1_000_000, description="Exchanges kept in memory for console and terminal.")
    retain_days: float = Field(90.0, gt=0, description="Days after which stored exchanges are deleted.")
    retain_mb: float = Field(2048.0, ge=16, description="Size of the database in MB above which the oldest are deleted.")
    poll: float = Field(2.0, ge=0, le=3600, description="Seconds between looks at /api/ps, off the request path; 0: never.")

    @field_validator("db", mode="before")
    @classmethod
    def _db_off(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.strip().lower() in ("off", "none", "") else value

    @field_validator("console_token", mode="before")
    @classmethod
    def _no_empty_token(cls, value: Any) -> Any:
        return value or None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)


def data_directory() -> Path:
    """The platform's directory for a program's own data (XDG, macOS Library, Windows AppData); not created here."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "qm-proxy"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "qm-proxy"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "qm-proxy"


def config_directory() -> Path:
    """Where `config.toml` is looked for when `--config` names none."""
    if sys.platform in ("darwin", "win32"):
        return data_directory()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "qm-proxy"


def load(flags: dict[str, Any], config: Path | None = None) -> Settings:
    """Flags (only those given) over environment over file over defaults. Raises `SettingsError` with the name and the remedy."""
    path = config or config_directory() / "config.toml"
    from_file: dict[str, Any] = {}
    if config is not None or path.is_file():
        try:
            from_file = tomllib.loads(path.read_text())
        except OSError as exc:
            raise SettingsError(f"The config file {path} cannot be read: {exc.strerror}.", remedy="Check --config.") from exc
        except tomllib.TOMLDecodeError as exc:
            raise SettingsError(f"The config file {path} is not TOML: {exc}.", remedy="Mend that line.") from exc
    environment = {name for name in Settings.model_fields if f"QM_{name.upper()}" in os.environ}
    given = {name: value for name, value in from_file.items() if name not in environment} | flags
    try:
        return Settings(**given)
    except ValidationError as exc:
        raise SettingsError(_explain(exc)) from exc


def _explain(failure: ValidationError) -> str:
    lines = []
    for problem in failure.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "?"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(Settings.model_fields))
            lines.append(f"There is no setting {name!r}; there are: {known}.")
            continue
        flag = "--" + name.replace("_", "-")
        lines.append(f"{flag} (or QM_{name.upper()}): {problem['msg']}; found {problem.get('input')!r}.")
    return "\n".join(lines)
