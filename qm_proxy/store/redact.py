"""What is taken out of captured content before it is stored or exported: keys, tokens, passwords. By pattern: neither complete
nor perfect. A user's own function (the setting `redact`) sees each text behind the patterns.

A redacted piece leaves its kind behind: `[redacted: github token]`. Patterns are anchored on fixed prefixes and bounded, so that
the cost stays linear in the text.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from qm_proxy.errors import SettingsError

__all__ = ["PATTERNS", "Redactor", "hook_of", "redact"]

PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "private key",
        re.compile(
            r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----(?:[^-]|-(?!----)){0,16384}(?:-----END [A-Z ]{0,24}PRIVATE KEY-----)?"
        ),
    ),
    ("aws key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("github token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})")),
    ("gitlab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}")),
    ("slack token", re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,255}")),
    ("google key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}")),
    ("hugging face token", re.compile(r"\bhf_[A-Za-z0-9]{30,64}")),
    ("api key", re.compile(r"\b(?:sk|pk|rk)-(?:[a-z0-9]{2,12}-){0,3}[A-Za-z0-9_-]{20,255}")),
    ("stripe key", re.compile(r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}")),
    ("json web token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,1024}")),
    ("bearer token", re.compile(r"(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{16,4096}")),
    ("password in a url", re.compile(r"(?<=://)[^\s/:@\"'<>]{1,128}:[^\s/@\"'<>]{1,256}(?=@)")),
    (
        "secret",
        re.compile(
            r"""(?ix) \b (?:[a-z0-9]{1,32}[_-]){0,4}
            (?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|token|passw(?:or)?d|passphrase)
            \\?["']? \s{0,4} [:=] \s{0,4} \\?["']? (?P<value> [^\s"'\\,;<>&]{8,512} )"""
        ),
    ),
)  # fmt: skip
"""Kind and pattern, in the order in which they are applied; a group `value` is replaced alone."""


def redact(text: str) -> tuple[str, int]:
    """The text without what looks like a secret, and how many pieces were taken out."""
    taken = 0

    def replace(match: re.Match[str], kind: str) -> str:
        nonlocal taken
        whole = match.group()
        value = match.groupdict().get("value")
        if value is not None and value.startswith("[redacted"):
            return whole
        taken += 1
        mark = f"[redacted: {kind}]"
        return mark if value is None else whole[: match.start("value") - match.start()] + mark

    for kind, pattern in PATTERNS:
        text = pattern.sub(lambda match, kind=kind: replace(match, kind), text)  # type: ignore[misc]
    return text, taken


class Redactor:
    """`redact`, then a user's hook where there is one. A hook that raises, or answers with something else than a text, costs the
    whole text: what it would have taken out must not stay."""

    def __init__(self, hook: Callable[[str], str] | None = None) -> None:
        self._hook = hook
        self.failures = 0

    def __call__(self, text: str) -> tuple[str, int]:
        """The text as it may be kept, and how many pieces were taken out."""
        plain, taken = redact(text)
        if self._hook is None:
            return plain, taken
        try:
            changed = self._hook(plain)
        except Exception:
            changed = None
        if not isinstance(changed, str):
            self.failures += 1
            return "[redacted: the hook failed]", taken + 1
        return changed, taken + (changed != plain)

    def text(self, text: str) -> str:
        """Only the text."""
        return self(text)[0]


def hook_of(name: str | None) -> Callable[[str], str] | None:
    """The function that `module:name` names, importable from where the proxy was started. Raises `SettingsError`."""
    if name is None:
        return None
    module, colon, function = name.partition(":")
    remedy = "Set redact to module:function of something that can be imported (PYTHONPATH)."
    if not (module and colon and function):
        raise SettingsError(f"The redaction hook {name!r} is not of the form module:function.", remedy=remedy)
    try:
        hook = getattr(importlib.import_module(module), function)
    except Exception as exc:  # importing runs a user's code
        raise SettingsError(f"The redaction hook {name!r} cannot be loaded: {type(exc).__name__}: {exc}.", remedy=remedy) from exc
    if not callable(hook):
        raise SettingsError(f"The redaction hook {name!r} is no function.", remedy=remedy)
    found: Callable[[str], str] = hook
    return found
