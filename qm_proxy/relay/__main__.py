"""`python -m qm_proxy.relay CONFIG_JSON`: one relay process. Started by the supervisor; see `process.Config` for the JSON."""

from __future__ import annotations

import sys

from qm_proxy.errors import QmError
from qm_proxy.relay.process import Config, run


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m qm_proxy.relay CONFIG_JSON", file=sys.stderr)
        return 2
    try:
        return run(Config.from_json(arguments[0]))
    except QmError as failure:
        print(f"qm-proxy: {failure}", file=sys.stderr)
        return failure.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
