"""Every case once direct and once through the relay: what both sides saw must be the same, byte for byte, ends included."""

from __future__ import annotations

import pytest

from tests.integration.transparency.cases import CASES
from tests.integration.transparency.conftest import Lab
from tests.integration.transparency.rig import Case, Side, run_case


@pytest.mark.parametrize("name", CASES)
def test_as_direct(lab: Lab, name: str) -> None:
    direct = run_case(CASES[name], lab.direct())
    through = run_case(CASES[name], lab.through())
    assert through == direct


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 200


def test_a_difference_would_be_seen(lab: Lab) -> None:
    """The comparison itself: a byte more, another byte and another kind of end each make two runs differ."""

    def sending(data: bytes, *, reset: bool = False) -> Case:
        def case(client: Side, upstream: Side) -> None:
            upstream.send(data)
            client.awaits(len(data))
            if reset:
                upstream.reset()
            else:
                upstream.fin()
            client.hears_of_its_end()
            client.rest()

        return case

    cases = [sending(b"ab"), sending(b"abc"), sending(b"ac"), sending(b"ab", reset=True)]
    assert len({run_case(case, lab.through()) for case in cases}) == 4
    assert len({run_case(case, lab.direct()) for case in cases}) == 4
