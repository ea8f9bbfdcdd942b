"""What is recorded is what is shown: a run is found by its name, and walked only from answers to its own questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from probes.agent.plan import plan_for
from probes.agent.report import Seen, report_agent
from probes.agent.walk import find_run, sections, walk
from probes.ask import Answer, Ask, fingerprint
from probes.result import AgentSection
from probes.runner import replay
from qm_proxy.errors import SettingsError

Server = Callable[..., Callable[[Ask], Answer]]


class Recorded:
    """A server that remembers what it answered, and to which question."""

    def __init__(self, model: Callable[[Ask], Answer]) -> None:
        self.model = model
        self.known: dict[str, tuple[str, Answer]] = {}

    def __call__(self, ask: Ask) -> Answer:
        answer = self.model(ask)
        self.known[ask.key] = fingerprint(ask), answer
        return answer

    def recall(self, ask: Ask) -> Answer | None:
        asked, answer = self.known.get(ask.key, ("", None))
        return answer if asked == fingerprint(ask) else None


def _report(model: Recorded, **flags: Any) -> tuple[AgentSection, Seen]:
    seen = Seen()
    return replay(report_agent(plan_for("m", "http://u", **flags), seen), model), seen


@pytest.mark.parametrize("policy", ["post", "wasteful", "exhausted-thinker", "megabyte", "random-legal"])
def test_every_run_comes_out_as_it_was(policy: str, server: Server) -> None:
    thinks = ("completion", "tools", "thinking") if policy == "exhausted-thinker" else ("completion", "tools")
    model = Recorded(server(policy, capabilities=thinks))
    section, seen = _report(model, seed=3, all_tiers=True, strict_k=True, k=3)
    assert len(section.runs) == len(seen.runs()) >= 12
    for run in section.runs:
        assert walk(section, "m", str(run["run"]), model.recall) == seen.walk(str(run["run"]))


def test_a_run_that_was_played_again_is_known_by_its_last_try(server: Server) -> None:
    calls = [0]
    good = server("oracle")

    def shaky(ask: Ask) -> Answer:
        calls[0] += ask.path == "/api/chat"
        if ask.path == "/api/chat" and calls[0] % 15 == 0:
            return Answer(ask.key, status=200, ending="upstream_truncated", error="reset")
        return good(ask)

    model = Recorded(shaky)
    section, _ = _report(model, tiers="easy")
    again = next(str(run["run"]) for run in section.runs if not str(run["run"]).endswith("/0"))
    _, _, tier, index, attempt = again.split("/")
    assert find_run(section, f"{tier}/{index}") == again
    assert attempt == "1"
    assert walk(section, "m", again, model.recall)["outcome"] == "PASS"


def test_two_paths_have_names_of_their_own(server: Server) -> None:
    model = Recorded(server("oracle"))
    section, _ = _report(model, tiers="easy", both=True)
    assert [one.path for one in sections(section)] == ["native", "prompt-json"]
    assert find_run(section, "easy/2") == "agent/native/easy/2/0"
    assert find_run(section, "prompt-json/easy/2") == "agent/prompt-json/easy/2/0"
    assert walk(section, "m", find_run(section, "prompt-json/easy/2"), model.recall)["path"] == "prompt-json"
    for wrong in ("easy", "easy/", "nonsense", "hard/0", ""):
        with pytest.raises(SettingsError):
            find_run(section, wrong)


def test_an_answer_to_another_question_is_never_shown(server: Server) -> None:
    model = Recorded(server("oracle"))
    section, _ = _report(model, tiers="easy", seed=3)
    section.conduct["temperature"] = 0.7
    with pytest.raises(SettingsError, match="another run"):
        walk(section, "m", "agent/native/easy/1/0", model.recall)
