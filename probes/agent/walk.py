"""Any run of a finished report, walked again from its recorded answers: no model is asked, nothing is guessed.

A result names its seed, its conduct and every run; the rows hold the answers. Instance and requests follow from the first,
so a recorded answer is used only for exactly the question that it answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probes.agent.dialogue import Conduct
from probes.agent.generator import GENERATOR_VERSION, generate
from probes.agent.replay import replay
from probes.agent.run import play_run
from probes.agent.sampling import goes_on_after_loop, instance_seed
from probes.agent.tiers import tier_named
from probes.ask import Answer, Ask
from probes.result import AgentSection
from qm_proxy.errors import SettingsError

__all__ = ["find_run", "sections", "walk"]

Recall = Callable[[Ask], Answer | None]


def sections(agent: AgentSection) -> list[AgentSection]:
    """The report's section, and the one of the other path if both were run."""
    return [agent] if agent.other_path is None else [agent, agent.other_path]


def find_run(agent: AgentSection, name: str) -> str:
    """The key of the run that a reader means by `hard/3`, `prompt-json/hard/3`, or a whole key.

    Raises SettingsError with the names there are.
    """
    keys = [str(run["run"]) for section in sections(agent) for run in section.runs]
    wanted = [name, f"agent/{name}", *(f"agent/{section.path}/{name}" for section in sections(agent))]
    for start in wanted:
        fitting = [key for key in keys if key == start or key.startswith(f"{start}/")]
        if fitting and start.count("/") >= 3:
            return fitting[-1]  # a run that was played again is known by its last try
    tiers: dict[tuple[str, str], list[int]] = {}
    for key in keys:
        _, path, tier, index, *_ = key.split("/")
        tiers.setdefault((path, tier), []).append(int(index))
    ways = len({path for path, _ in tiers})
    have = ", ".join(
        f"{f'{path}/' if ways > 1 else ''}{tier}/{min(found)} to {tier}/{max(found)}" for (path, tier), found in tiers.items()
    )
    raise SettingsError(f"There is no run {name!r} in this report.", remedy=f"There are {have}." if have else "It holds no run.")


def walk(agent: AgentSection, model: str, key: str, recall: Recall | None) -> dict[str, Any]:
    """The replay of that run: from the recorded answers, or as the result keeps it. Raises SettingsError when neither can."""
    section = next(section for section in sections(agent) if any(run["run"] == key for run in section.runs))
    kept = next((shown for shown in section.replays if shown["run"] == key), None)
    if recall is None or section.generator_version != GENERATOR_VERSION:
        if kept is not None:
            return kept
        why = "its answers were not recorded" if recall is None else f"it was made by {section.generator_version}"
        raise SettingsError(
            f"{key} cannot be walked: {why}.", remedy="Make reports with --out FOLDER, and walk them with the same version."
        )
    _, path, tier, index, *_ = key.split("/")
    how = section.conduct
    seed = int(how["seed"])
    conduct = Conduct(
        model=model,
        path="native" if path == "native" else "prompt-json",
        think=how.get("thinking"),
        window_tokens=how["window_tokens"][tier],
        turn_tokens=how["turn_tokens"],
        thinking_tokens=how["thinking_tokens"],
        temperature=how["temperature"],
        turn_limit_s=how["turn_limit_s"],
    )
    instance = generate(tier_named(tier), instance_seed(seed, tier, int(index)))
    playing = play_run(instance, conduct, key, go_on=goes_on_after_loop(seed, tier, int(index)))
    try:
        ask = next(playing)
        while True:
            answer = recall(ask)
            if answer is None:
                raise SettingsError(
                    f"The answer to {ask.key} is not among the recorded ones: rows.jsonl is of another run.",
                    remedy="Name the folder that --out wrote.",
                )
            ask = playing.send(answer)
    except StopIteration as concluded:
        return replay(concluded.value)
