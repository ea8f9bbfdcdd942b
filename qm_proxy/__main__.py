"""`python -m qm_proxy` is the command `qm-proxy`."""

from qm_proxy.cli import main

main()
