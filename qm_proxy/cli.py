"""The command `qm-proxy`."""


def main() -> None:
    """Replaced in the next commit."""
