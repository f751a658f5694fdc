"""The one exception for what a user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Something the user gave can't be used; the message alone says what, and what to do about it."""


@contextmanager
def exit_on_input_error(after_interrupt: str = "nothing was written") -> Iterator[None]:
    """Turn an `InputError` into one line on stderr and exit status 2, and Ctrl-C into status 130.

    A reader of our output that leaves early (`| head`) ends us quietly.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\ninterrupted: {after_interrupt}.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        raise SystemExit(141) from None


def first_line(error: Exception) -> str:
    """The first sentence of a foreign error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(" .:")
