"""The errors of this project, one tree.

    QmError                     anything of ours; str() is a sentence for a user: what was expected, found, and what to do
    ├── SettingsError           the user's: a flag, variable or config file; exit code 2
    ├── PortInUse               the machine's: something else listens there; exit code 2
    ├── UpstreamIsProxy         the user's: the upstream is this proxy; exit code 2
    ├── UpstreamError           Ollama's or the network's; exit code 5
    │   ├── UpstreamUnreachable     nothing answers there
    │   └── UpstreamRefused         it answered with an error (status and text kept)
    ├── InvalidMeasurement      a probe measured something else than it meant to; exit code 4
    ├── Inconclusive            a probe needs more trials than it was allowed; exit code 3
    ├── PipeError               ours: the relay-observer pipe speaks another version or is corrupt
    └── StoreError              the disk's or the database's: full, read-only, locked, foreign schema

Bad bytes from a peer are data, not errors: decoders answer with `events.Malformed`.
"""

from __future__ import annotations

__all__ = [
    "Inconclusive",
    "InvalidMeasurement",
    "PipeError",
    "PortInUse",
    "QmError",
    "SettingsError",
    "StoreError",
    "UpstreamError",
    "UpstreamIsProxy",
    "UpstreamRefused",
    "UpstreamUnreachable",
]


class QmError(Exception):
    """Root of the tree. `remedy` says what the reader can do; `exit_code` is what a command ends with."""

    exit_code = 5

    def __init__(self, message: str, *, remedy: str | None = None, **evidence: object) -> None:
        super().__init__(message if remedy is None else f"{message} {remedy}")
        self.message = message
        self.remedy = remedy
        self.evidence = evidence


class SettingsError(QmError):
    """A flag, an environment variable or the config file says something we cannot follow."""

    exit_code = 2


class PortInUse(SettingsError):
    """The address we should listen on is taken."""


class UpstreamIsProxy(SettingsError):
    """The upstream address is one of our own."""


class UpstreamError(QmError):
    """Ollama, or the way to it, failed."""


class UpstreamUnreachable(UpstreamError):
    """Nothing answers at the upstream address."""


class UpstreamRefused(UpstreamError):
    """The upstream answered with an error; `evidence` keeps `status` and `body`."""


class InvalidMeasurement(QmError):
    """What was measured is not what was meant to be measured."""

    exit_code = 4


class Inconclusive(QmError):
    """More trials are needed than were allowed."""

    exit_code = 3


class PipeError(QmError):
    """The pipe between relay and observer carries another version, or garbage."""


class StoreError(QmError):
    """The database cannot be read or written."""
