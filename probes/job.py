"""One run of a probe as a process: `python -m probes.job SETTINGS`. Started by `jobs`, told to stop by SIGINT or a closed stdin.

It prints JSON lines: `{"progress": {text, step, steps, elapsed_s, eta_s}}` while it goes, and last `{"result": …, "report": …}`
or `{"error": …, "exit_code": …}`. A process of its own, because SciPy and an hour of asking have no place beside live traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from probes.commands import Options, Session, audit_context, inspect_model, report_agent, report_model
from probes.report.markdown import markdown
from probes.runner import Progress
from probes.traffic import Traffic
from probes.walks import save_replays
from qm_proxy.errors import QmError

__all__ = ["main"]

_COMMANDS = {"inspect": inspect_model, "audit": audit_context, "agent": report_agent, "report": report_model}


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message, separators=(",", ":"), allow_nan=False, default=str), flush=True)


def told(progress: Progress) -> None:
    say(
        {
            "progress": {
                "text": progress.text,
                "step": progress.step,
                "steps": progress.steps,
                "elapsed_s": round(progress.elapsed_s, 3),
                "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
            }
        }
    )


async def run(settings: dict[str, Any]) -> int:
    kind = settings.pop("kind")
    out = settings.pop("out", None)
    traffic = Traffic(settings["upstream"], settings.pop("console", None))
    options = Options(**settings, out=Path(out) if out else None, on_progress=told)
    options.other_traffic, options.traffic_since = traffic.now, traffic.since
    session = Session(kind, options)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: session.stop("cancelled"))
    threading.Thread(target=_until_orphaned, args=(loop, session), daemon=True).start()
    result = await _COMMANDS[kind](options, session)
    if options.out is not None and result.agent is not None:
        with contextlib.suppress(QmError, OSError):  # the result is worth telling without its page, too
            save_replays(options.out)
    say({"result": json.loads(result.to_json(None)), "report": markdown(result, folder=options.out)})
    return result.run.exit_code


def _until_orphaned(loop: asyncio.AbstractEventLoop, session: Session) -> None:
    """Whoever started this holds its stdin open; when that closes, nobody waits for the result any more."""
    while os.read(0, 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the run
        loop.call_soon_threadsafe(session.stop, "interrupted")


def main() -> None:
    try:
        code = asyncio.run(run(json.loads(sys.argv[1])))
    except QmError as exc:
        say({"error": str(exc), "exit_code": exc.exit_code})
        code = exc.exit_code
    except Exception as exc:  # whoever reads this line cannot see a traceback
        say({"error": f"{type(exc).__name__}: {exc}", "exit_code": 5})
        code = 5
    sys.exit(code)


if __name__ == "__main__":
    main()
