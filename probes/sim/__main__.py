"""`python -m probes.sim [HOST:PORT]`: the simulated Ollama without the rest of the command line."""

from __future__ import annotations

import sys

from probes.sim.command import run
from qm_proxy.errors import QmError

if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:11434"))
    except QmError as failed:
        print(failed, file=sys.stderr)
        sys.exit(failed.exit_code)
