"""Flag over variable over file over default; errors that name the setting and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from qm_proxy.errors import SettingsError
from qm_proxy.settings import Settings, load


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"QM_{name.upper()}", raising=False)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_defaults_are_the_contract() -> None:
    settings = load({})
    assert settings.listen == "127.0.0.1:11436"
    assert settings.console == "127.0.0.1:11437"
    assert settings.upstream == "http://127.0.0.1:11434"
    assert settings.guard == "observe"
    assert settings.workers == 1
    assert settings.grace == 10
    assert not settings.capture_content
    assert settings.excerpts


def test_ollama_host_is_the_default_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "box:1234")
    assert load({}).upstream == "box:1234"


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "some.toml"
    config.write_text('workers = 2\ngrace = 3.5\nlisten = "127.0.0.1:1"\n')
    monkeypatch.setenv("QM_GRACE", "4.5")
    monkeypatch.setenv("QM_LISTEN", "127.0.0.1:2")
    settings = load({"listen": "127.0.0.1:3"}, config)
    assert (settings.workers, settings.grace, settings.listen) == (2, 4.5, "127.0.0.1:3")


def test_the_usual_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "config" / "qm-proxy").mkdir(parents=True)
    (tmp_path / "config" / "qm-proxy" / "config.toml").write_text('guard = "cut"\n')
    assert load({}).guard == "cut"


@pytest.mark.parametrize("word", ["off", "OFF", "none", ""])
def test_db_off(word: str) -> None:
    assert load({"db": word}).db is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"workers": 0}, "--workers"),
        ({"guard": "kill"}, "--guard"),
        ({"grace": -1}, "QM_GRACE"),
        ({"colour": "red"}, "no setting 'colour'"),
    ],
)
def test_errors_name_the_setting(flags: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as failure:
        load(flags)
    assert failure.value.exit_code == 2


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load({}, tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("workers = = 2")
    with pytest.raises(SettingsError, match="not TOML"):
        load({}, tmp_path / "bad.toml")


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description and len(field.description) > 20 for field in Settings.model_fields.values())
