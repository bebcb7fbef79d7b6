"""One piece of work at a time, in the order of arrival; its messages as they come, and a way to stop it."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from score_diffusion.run.errors import UserError
from score_diffusion.run.machine import memory_explained
from score_diffusion.sde_lib import InputError

Message = dict[str, object]
"""What the page gets, ready for JSON; its "kind" says what it is."""
ENDS = ("done", "stopped", "error")
"""Kinds of the last message."""
MOST_WAITING = 16
BEAT = 1.0  # seconds after which a page that gets no message gets "waiting", so that a closed one is noticed


class Stopped(Exception):
    """The work was stopped."""


@dataclass(eq=False)
class Turn:
    """The work of a page, waiting or at work."""

    page: str
    stopped: threading.Event = field(default_factory=threading.Event)
    messages: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)

    def emit(self, message: Message) -> None:
        """Sends a message to the page.

        Raises:
            Stopped: If the work was stopped.
        """
        self.check()
        self.messages.put(message)

    def check(self) -> None:
        """Ends the work if it was stopped.

        Raises:
            Stopped: If it was.
        """
        if self.stopped.is_set():
            raise Stopped


Work = Callable[[Turn], Message]
"""Does some work, emitting messages, and returns the last one."""


class Turns:
    """Work of several pages on one device: one at a time."""

    def __init__(self) -> None:
        self._line: list[Turn] = []
        self._changed = threading.Condition()

    def messages(self, page: str, work: Work) -> Iterator[Message]:
        """Does work when its turn comes; yields its messages. Closing the iterator stops the work.

        Args:
            page: Who asks: a page has one piece of work at a time.
            work: The work.
        """
        turn = Turn(page)
        try:
            self._join(turn)
        except UserError as error:
            yield {"kind": "error", "sentence": str(error)}
            return
        threading.Thread(target=self._work, args=(turn, work), daemon=True).start()
        try:
            while True:
                try:
                    message = turn.messages.get(timeout=BEAT)
                except queue.Empty:
                    message = {"kind": "waiting", "ahead": self._ahead(turn)}
                yield message
                if message["kind"] in ENDS:
                    return
        finally:
            self._stop(turn)

    def stop(self, page: str) -> None:
        """Stops the work of a page, if there is any."""
        with self._changed:
            self._stop(*self._of(page))

    def stop_all(self) -> None:
        """Stops all work, and waits until it has ended, for some seconds at most."""
        with self._changed:
            self._stop(*self._line)
            self._changed.wait_for(lambda: not self._line, timeout=5.0)

    def _of(self, page: str) -> list[Turn]:
        return [turn for turn in self._line if turn.page == page]

    def _stop(self, *turns: Turn) -> None:
        with self._changed:
            for turn in turns:
                turn.stopped.set()
            self._changed.notify_all()

    def _ahead(self, turn: Turn) -> int:
        with self._changed:
            return self._line.index(turn) if turn in self._line else 0

    def _join(self, turn: Turn) -> None:
        with self._changed:
            if any(not other.stopped.is_set() for other in self._of(turn.page)):
                raise UserError("this page is at work already: wait for it, or stop it first")
            if len(self._line) > MOST_WAITING:
                raise UserError(f"{MOST_WAITING} others are waiting already: try again later")
            self._line.append(turn)

    def _work(self, turn: Turn, work: Work) -> None:
        last: Message = {"kind": "stopped"}
        try:
            with self._changed:
                self._changed.wait_for(lambda: turn.stopped.is_set() or self._line[0] is turn)
            turn.check()
            with memory_explained("demo"):
                last = work(turn)
        except Stopped:
            pass
        except (UserError, InputError) as error:
            last = {"kind": "error", "sentence": " ".join(str(error).split())}
        except Exception:
            traceback.print_exc()
            last = {"kind": "error", "sentence": "this failed unexpectedly: the terminal shows the traceback"}
        finally:
            with self._changed:
                self._line.remove(turn)
                self._changed.notify_all()
            turn.messages.put(last)
