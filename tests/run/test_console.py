from __future__ import annotations

import pytest

from score_diffusion.run.console import advance_to, format_duration, print_result, progress_bar, warn


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0m 00s"), (59.6, "1m 00s"), (3599.6, "1h 00m 00s"), (7325, "2h 02m 05s")]
)
def test_durations(seconds: float, text: str):
    assert format_duration(seconds) == text


def test_results_are_aligned(capsys):
    print_result("Title", [("a", 1), ("longer", "b")])
    assert capsys.readouterr().out == "\nTitle\n  a       1\n  longer  b\n"


def test_a_bar_moves_to_a_position(capsys):
    with progress_bar(None, "title", "step") as bar:
        for position, total in ((2, 10), (5, 12), (12, 12)):
            advance_to(bar, position, total)
            assert (bar.n, bar.total) == (position, total)


def test_warnings_go_to_stderr(capsys):
    warn("careful")
    assert capsys.readouterr() == ("", "warning: careful\n")
