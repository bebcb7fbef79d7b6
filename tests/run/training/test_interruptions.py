"""Signals, time limits and full disks."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.training.interruptions import StopRequest, full_disk_explained


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_acts_at_once(number: int):
    received = []
    previous = signal.signal(number, lambda number, frame: received.append(number))
    try:
        with StopRequest() as stop:
            stop.agree(time_is_over=False)
            assert stop.signal == 0
            os.kill(os.getpid(), number)
            stop.agree(time_is_over=False)
            assert stop.signal == number and not received
            os.kill(os.getpid(), number)
            assert received == [number]
    finally:
        signal.signal(number, previous)


def test_handlers_are_those_from_before_at_the_end():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) not in before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_only_the_time_stops_training():
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            stop.agree(time_is_over=False)
            seen.append((stop.signal, stop.time_is_over))
            stop.agree(time_is_over=True)
            seen.append((stop.signal, stop.time_is_over))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, False), (0, True)] and signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_is_explained_and_other_errors_are_not(tmp_path: Path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(UserError, match="training stopped; there is no checkpoint yet: free some space"):
            with full_disk_explained(tmp_path):
                raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError):
        with full_disk_explained(tmp_path):
            raise PermissionError(errno.EACCES, "no")
