# SPDX-License-Identifier: MIT
"""One line on standard error that says what is going on, on a terminal only."""

import shutil
import sys
import time

REDRAW_INTERVAL = 0.1  # seconds


class Progress:
    """Shows what is being measured, and for how long that has been going on."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._begun = time.monotonic()
        self._drawn_at = 0.0
        self._length = 0  # of what stands there
        self.stage = ""  # the scenario, and how many there are

    def show(self, text: str) -> None:
        """Put a text into the place of the one before."""
        now = time.monotonic()
        if self._is_shown and now - self._drawn_at > REDRAW_INTERVAL:
            minutes, seconds = divmod(int(now - self._begun), 60)
            self._draw(f"{minutes}:{seconds:02} {self.stage}: {text}")
            self._drawn_at = now

    def clear(self) -> None:
        """Leave the line empty, for something else to be printed."""
        if self._is_shown:
            self._draw("")
            sys.stderr.write("\r")
            sys.stderr.flush()
            self._drawn_at = 0.0

    def _draw(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns - 1  # the last one would begin a new line
        sys.stderr.write("\r" + text[:columns].ljust(self._length))
        sys.stderr.flush()
        self._length = len(text[:columns])
