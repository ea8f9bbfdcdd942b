"""What cannot be probed is refused in words, before anything is measured."""

from __future__ import annotations

import pytest

from probes.ask import Answer, Ask, Stopped
from probes.runner import replay
from probes.survey import restore, survey, unload
from qm_proxy.errors import InvalidMeasurement, SettingsError, UpstreamError
from tests.probes.fakes import FakeModel


def look(model: FakeModel, name: str | None = None):  # type: ignore[no-untyped-def]
    return replay(survey(name or model.name, "http://x"), model.answer)


def test_the_target_is_described() -> None:
    found = look(FakeModel())
    target = found.target
    assert (target.digest, target.ollama_version, target.runner, target.quantization) == ("d1gest", "0.33.0", "gguf", "Q4_K_M")
    assert (target.weights_bytes, target.advertised_context_tokens) == (5_000_000_000, 131072)
    assert target.template_sha256 is not None
    assert (target.was_loaded, found.others) == (False, [])


@pytest.mark.parametrize("loaded", [True, False])
def test_what_was_loaded_before_is_loaded_after(loaded: bool) -> None:
    model = FakeModel(loaded=loaded)
    found = look(model)
    model.loaded = not loaded
    replay(restore(found), model.answer)
    assert model.loaded is loaded


def test_an_unknown_model_lists_near_names_and_the_way_to_get_it() -> None:
    with pytest.raises(SettingsError, match=r"fake:8b.*ollama pull fakr:8b"):
        look(FakeModel(), "fakr:8b")


def test_an_embedding_model_and_a_cloud_model_are_refused() -> None:
    with pytest.raises(SettingsError, match="does not generate text"):
        look(FakeModel(capabilities=("embedding",)))
    with pytest.raises(SettingsError, match="cloud"):
        look(FakeModel(name="big:120b-cloud"))


def test_a_name_without_tag_is_the_latest() -> None:
    assert look(FakeModel(name="fake:latest"), "fake").target.digest == "d1gest"


def test_no_answer_stops_the_run() -> None:
    with pytest.raises(Stopped) as caught:
        replay(survey("m", "http://x"), lambda ask: Answer(ask.key, ending="upstream_unreachable", error="refused"))
    assert caught.value.reason == "upstream"


@pytest.mark.parametrize(
    ("version", "show"),
    [
        (Answer("", ending="upstream_truncated", error="not readable as HTTP: SSH-2.0"), Answer("")),
        (Answer("", status=404, error="status 404", ending="upstream_error"), Answer("", status=501, error="status 501")),
        (Answer("", status=200, document={"hello": "there"}), Answer("", status=404, error="status 404", document={})),
    ],
)
def test_what_is_not_ollama_is_told_so(version: Answer, show: Answer) -> None:
    answers = {"/api/version": version, "/api/show": show}
    with pytest.raises(UpstreamError, match="not Ollama"):
        replay(survey("m", "http://x"), lambda ask: answers.get(ask.path, Answer(ask.key, status=404)))


def test_another_loaded_model_is_a_warning() -> None:
    model = FakeModel()

    def answer(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.path == "/api/ps":
            made.document = {"models": [{"name": "other:7b", "digest": "x", "size": 1, "size_vram": 1, "context_length": 4096}]}
        return made

    found = replay(survey("fake:8b", "http://x"), answer)
    assert found.warnings[0][0] == "other_models_loaded"
    assert "other:7b" in found.warnings[0][1]


def test_a_model_that_another_client_holds_cannot_be_unloaded() -> None:
    model = FakeModel()
    found = look(model)

    def held(ask: Ask) -> Answer:
        model.loaded = True
        return model.answer(ask)

    with pytest.raises(InvalidMeasurement, match="another client"):
        replay(unload("P1", found), held)


def test_unloading_waits_until_it_is_gone() -> None:
    model = FakeModel(loaded=True)
    found = look(model)
    replay(unload("P1", found), model.answer)
    assert not model.loaded


def test_what_was_loaded_comes_back_with_its_window_and_its_pin() -> None:
    """Three models were there: one pinned with a long window, one evicted by the run, and our own."""
    far, soon = "2318-03-01T00:00:00Z", "2026-11-24T20:00:00Z"
    before = [
        {"name": "fake:8b", "digest": "d1gest", "context_length": 8192, "expires_at": soon},
        {"name": "pinned:1b", "digest": "b", "context_length": 32768, "expires_at": far},
        {"name": "plain:1b", "digest": "c", "context_length": 4096, "expires_at": soon},
    ]
    loaded = {str(entry["name"]): entry for entry in before}
    model, asked = FakeModel(), []

    def answer(ask: Ask) -> Answer:
        made = model.answer(ask)
        if ask.path == "/api/ps":
            made.document = {"models": list(loaded.values())}
        elif ask.path == "/api/generate":
            body = ask.body or {}
            asked.append(body)
            options = body.get("options")
            window = options["num_ctx"] if isinstance(options, dict) else 4096
            loaded[str(body["model"])] = {"name": body["model"], "context_length": window}
        return made

    found = replay(survey("fake:8b", "http://x"), answer)
    del loaded["pinned:1b"]
    loaded["fake:8b"] = {"name": "fake:8b", "context_length": 16384}
    replay(restore(found), answer)
    assert asked == [
        {"model": "fake:8b"},
        {"model": "pinned:1b", "keep_alive": -1},
        {"model": "fake:8b", "options": {"num_ctx": 8192}},
        {"model": "pinned:1b", "keep_alive": -1, "options": {"num_ctx": 32768}},
    ]
