"""An answer's text → its class. Exactly one candidate must be given: listing several is not knowing."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from probes.audit.facts import Trial
from probes.result import AnswerClass

__all__ = ["classify", "normalised", "tool_call"]

_REFUSAL = re.compile(
    r"NOT (?:STATED|MENTIONED|SPECIFIED|PROVIDED|FOUND|GIVEN|AVAILABLE|PRESENT|INCLUDED|THERE)"
    r"|(?:CANNOT|CAN NOT|CAN'T|COULD NOT|UNABLE TO) (?:FIND|DETERMINE|ANSWER|HELP|LOCATE)"
    r"|DOES(?: NOT|N'T) (?:STATE|MENTION|CONTAIN|SPECIFY|SAY|PROVIDE|INCLUDE)"
    r"|NO (?:INFORMATION|SUCH|MENTION)|I DON'T KNOW|UNKNOWN"
)
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_QUOTES = {ord("‘"): "'", ord("’"): "'", ord("“"): '"', ord("”"): '"'}


def normalised(text: str) -> str:
    """NFKC, upper case, plain hyphens and quotes, single spaces; hyphens lose the spaces around them."""
    plain = unicodedata.normalize("NFKC", text).translate(_DASHES).translate(_QUOTES).upper()
    return re.sub(r"\s*-\s*", "-", re.sub(r"\s+", " ", plain)).strip()


def classify(trial: Trial, text: str) -> AnswerClass:
    """Classes are exclusive; see AnswerClass. "invalid" and "infra" are decided before, from the exchange."""
    plain = normalised(text)
    if trial.family == "instruction":
        return _instruction(trial, text)
    if not re.search(r"\w", plain):
        return "no_answer"
    if trial.form.pattern.startswith("(?<![\\d"):  # numbers may be written with separators
        plain = re.sub(r"(?<=\d)[,_' ](?=\d{3})", "", plain)
    candidates = list(dict.fromkeys(match.group(0) for match in trial.form.finditer(plain)))
    refused = _REFUSAL.search(plain) is not None
    if len(candidates) > 1:
        return "malformed"
    if not candidates:
        if refused:
            return "correct" if not trial.answer else "refused"
        return "malformed"
    value = candidates[0]
    if trial.answer and value == trial.answer:
        return "correct"
    if value in trial.stale:
        return "stale"
    if value in trial.distractors:
        return "distractor"
    return "confabulated"


def _instruction(trial: Trial, text: str) -> AnswerClass:
    """The origin's task: one parseable call of the right tool with exact arguments."""
    if not text.strip():
        return "no_answer"
    call = tool_call(text)
    if call is None:
        return "refused" if _REFUSAL.search(normalised(text)) else "malformed"
    arguments = call.get("args", call.get("arguments"))
    if call.get("name") != "restart_service" or not isinstance(arguments, dict):
        return "distractor"
    return "correct" if normalised(str(arguments.get("ticket", ""))) == trial.answer else "confabulated"


def tool_call(text: str) -> dict[str, Any] | None:
    """The first balanced JSON object with a string `name`, fences and prose around it ignored."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, _ = decoder.raw_decode(text, at)
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            return found
        at = text.find("{", at + 1)
    return None
