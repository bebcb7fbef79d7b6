"""Work of several pages: one at a time, in order, and it can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from score_diffusion.run.demo import turns
from score_diffusion.run.demo.turns import Message, Turn, Turns
from score_diffusion.run.errors import UserError


def endless(turn: Turn) -> Message:
    while True:
        turn.emit({"kind": "progress"})


def collect(messages: Iterator[Message], into: list[Message]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.extend(messages))
    thread.start()
    return thread


def test_messages_come_as_they_are_made_and_the_result_last():
    def work(turn: Turn) -> Message:
        turn.emit({"kind": "frame", "t": 1.0})
        turn.emit({"kind": "frame", "t": 0.5})
        return {"kind": "done"}

    kinds = [(message["kind"], message.get("t")) for message in Turns().messages("a", work)]
    assert kinds == [("frame", 1.0), ("frame", 0.5), ("done", None)]


def test_one_works_while_the_others_wait_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "BEAT", 0.01)
    line, at_work, order, go = Turns(), threading.Lock(), [], threading.Event()

    def work(turn: Turn) -> Message:
        assert at_work.acquire(blocking=False), "two at once"
        order.append(turn.page)
        go.wait(10)
        at_work.release()
        return {"kind": "done"}

    received: dict[str, list[Message]] = {page: [] for page in "abc"}
    threads, waiting = [], line.messages("a", work)
    assert next(waiting) == {"kind": "waiting", "ahead": 0}  # at work, without a message
    for page in "bc":
        other = line.messages(page, work)
        received[page].append(next(other))
        threads.append(collect(other, received[page]))
    assert [received[page][0]["ahead"] for page in "bc"] == [1, 2]
    go.set()
    received["a"] = list(waiting)
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "c"]
    assert all(messages[-1] == {"kind": "done"} for messages in received.values())


def test_work_is_stopped_by_its_page_and_when_the_page_closes():
    line = Turns()
    messages = line.messages("a", endless)
    assert next(messages) == {"kind": "progress"}
    line.stop("b")
    assert next(messages) == {"kind": "progress"}
    line.stop("a")
    assert list(messages)[-1] == {"kind": "stopped"}
    closed = line.messages("a", endless)
    next(closed)
    closed.close()
    assert list(line.messages("a", lambda turn: {"kind": "done"}))[-1] == {"kind": "done"}


def test_who_waits_can_be_stopped_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "BEAT", 0.01)
    line = Turns()
    first, second = line.messages("a", endless), line.messages("b", endless)
    next(first)
    assert next(second) == {"kind": "waiting", "ahead": 1}
    line.stop("b")
    assert list(second)[-1] == {"kind": "stopped"}
    line.stop_all()
    assert list(first)[-1] == {"kind": "stopped"}


def test_a_page_has_one_piece_of_work_at_a_time(monkeypatch: pytest.MonkeyPatch):
    line = Turns()
    first = line.messages("a", endless)
    next(first)
    (refusal,) = line.messages("a", endless)
    assert refusal["kind"] == "error" and "at work already" in str(refusal["sentence"])
    monkeypatch.setattr(turns, "MOST_WAITING", 0)
    (refusal,) = line.messages("b", endless)
    assert "waiting already" in str(refusal["sentence"])
    first.close()


def test_errors_of_the_users_are_sentences_and_bugs_are_shown_in_the_terminal(capsys):
    def refused(turn: Turn) -> Message:
        raise UserError("scale must be\nat least 0")

    def broken(turn: Turn) -> Message:
        raise KeyError("surprise")

    def large(turn: Turn) -> Message:
        raise MemoryError

    line = Turns()
    assert list(line.messages("a", refused)) == [{"kind": "error", "sentence": "scale must be at least 0"}]
    assert "not enough memory" in str(list(line.messages("a", large))[0]["sentence"])
    assert "Traceback" not in capsys.readouterr().err
    (message,) = line.messages("a", broken)
    assert "the terminal" in str(message["sentence"]) and "surprise" not in str(message["sentence"])
    assert "KeyError: 'surprise'" in capsys.readouterr().err
