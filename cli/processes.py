"""Being a process among others: ending with the parent, ending on a signal, never staying as a zombie."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

_PR_SET_PDEATHSIG = 1
log = logging.getLogger(__name__)


def die_with_parent(parent_pid: int) -> None:
    """From now on this process gets SIGTERM when `parent_pid`, which started it, ends, however it ends.

    Linux only (elsewhere nothing happens). Call it in the main thread after the signal handlers are set.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        prctl = libc.prctl
    except (OSError, AttributeError):
        return
    if prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # the parent was gone before the line above
        signal.raise_signal(signal.SIGTERM)


class StopSignal:
    """SIGTERM and SIGINT (and `also`) as an event: `requested` tells whether one came.

    Build it in the main thread. A signal in `also` stays ignored where it is ignored, as nohup does SIGHUP.

    The handler only sets the event: stopping inside a handler could wait for a lock that the interrupted code
    holds.
    """

    def __init__(self, also: Sequence[signal.Signals] = ()) -> None:
        self._event = threading.Event()
        wanted = [number for number in also if signal.getsignal(number) is not signal.SIG_IGN]
        for number in (signal.SIGTERM, signal.SIGINT, *wanted):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether one of the signals came."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Waits up to timeout_s for a signal; whether one came."""
        return self._event.wait(timeout_s)


def end_with_any_thread() -> None:
    """From now on an exception that ends any thread ends the process with exit 1: half a program is worse."""

    def hook(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "?"
        error = args.exc_value or args.exc_type()
        log.critical("thread %s died", name, exc_info=(args.exc_type, error, args.exc_traceback))
        sys.stderr.flush()
        os._exit(1)

    threading.excepthook = hook


def exit_when_stuck(after_s: float, code: int = 1) -> Callable[[], None]:
    """Ends the process with exit `code` in after_s seconds, unless the function returned is called before."""

    def give_up() -> None:
        log.critical("stopping took longer than %g s: ending now", after_s)
        os._exit(code)

    timer = threading.Timer(after_s, give_up)
    timer.daemon = True
    timer.start()
    return timer.cancel
