"""Progress bars for a person at a terminal; elsewhere they write nothing."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class Bars(Progress):
    """Rich's bars, shown where ``console`` is a terminal and they are ``active``."""

    def __init__(
        self, *columns: ProgressColumn, console: Console, active: bool = True, transient: bool = False
    ) -> None:
        super().__init__(*columns, console=console, transient=transient, disable=not (active and console.is_terminal))

    def stop(self) -> None:
        """Take the bars away. Rich before 14.3 writes an empty line here, even where it never showed any."""
        if not self.disable:
            super().stop()
