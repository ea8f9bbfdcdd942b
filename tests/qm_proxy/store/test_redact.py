from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.errors import SettingsError
from qm_proxy.store.redact import PATTERNS, Redactor, hook_of, redact

_JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


@pytest.mark.parametrize(
    ("text", "secret", "kind"),
    [
        ("key AKIAIOSFODNN7EXAMPLE here", "AKIAIOSFODNN7EXAMPLE", "aws key"),
        ("ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9, "github token"),
        ("export X=github_pat_" + "a1B2_" * 6, "github_pat_", "github token"),
        ("glpat-" + "x" * 20, "glpat-", "gitlab token"),
        ("xoxb-1234567890-abcdef", "xoxb-", "slack token"),
        ("AIza" + "S" * 35, "AIza", "google key"),
        ("hf_" + "q" * 34, "hf_q", "hugging face token"),
        ("sk-ant-api03-" + "Z" * 40, "sk-ant", "api key"),
        ("sk-" + "T3" * 24, "sk-T3", "api key"),
        ("sk_live_" + "9" * 24, "sk_live_", "stripe key"),
        (f"token is {_JWT}!", _JWT, "json web token"),
        ("Authorization: Bearer abcdefghijklmnopqrstuv", "abcdefghijklmnopqrstuv", "bearer token"),
        ("postgres://admin:hunter2hunter2@db/x", "hunter2", "password in a url"),
        ('{"api_key": "0123456789abcdef"}', "0123456789abcdef", "secret"),
        ("OPENAI_API_KEY=0123456789abcdef", "0123456789abcdef", "secret"),
        ('{\\"password\\": \\"correct-horse\\"}', "correct-horse", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----", "MIIEabc", "private key"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEabc cut off", "MIIEabc", "private key"),
    ],
)
def test_secrets_go_and_their_kind_stays(text: str, secret: str, kind: str) -> None:
    plain, taken = redact(f"before {text} after")
    assert secret not in plain
    assert f"[redacted: {kind}]" in plain
    assert taken == 1
    assert plain.startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "The token count is 12, the password policy says nothing.",
        "def secret(): return skeleton-key",
        "https://example.org/path?token_type=x",
        "sha256:0190b5a27c1e7000800000000000",
        "a sk-etch of a risk-averse plan",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == (text, 0)


@given(st.text(max_size=300))
def test_twice_is_as_once(text: str) -> None:
    once, _ = redact(text)
    assert redact(once)[0] == once


def test_the_cost_is_linear() -> None:
    """Every pattern on what it likes most, repeated: were one quadratic, this would not end within the suite's patience."""
    for piece in ("-----BEGIN PRIVATE KEY-----", "eyJ", "a_b-", "token ", "https://", "api_key=", "sk-", "Bearer "):
        redact(piece * (400_000 // len(piece)))
    assert len(PATTERNS) == 13


def shout(text: str) -> str:
    return text.replace("ACME", "[customer]")


def test_a_users_hook_comes_behind_the_patterns() -> None:
    redactor = Redactor(shout)
    text, taken = redactor("ACME's key is " + "ghp_" + "a1B2" * 9)
    assert text == "[customer]'s key is [redacted: github token]"
    assert taken == 2
    assert Redactor().text("ACME") == "ACME"


@pytest.mark.parametrize("hook", [lambda text: 1 / 0, lambda text: None])
def test_a_hook_that_fails_costs_the_text(hook: Any) -> None:
    redactor = Redactor(hook)
    assert redactor.text("what it would have taken out") == "[redacted: the hook failed]"
    assert redactor.failures == 1


def test_hooks_are_found_by_name() -> None:
    assert hook_of(None) is None
    found = hook_of("textwrap:dedent")
    assert found is not None
    assert found(" x") == "x"
    for name in ("textwrap", "textwrap:", "textwrap:nothing", "no_such_module:x", "textwrap:__name__"):
        with pytest.raises(SettingsError, match="module:function"):
            hook_of(name)
