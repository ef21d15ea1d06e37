"""One progress line per running notebook: which, which section, how long so far."""

import re
import subprocess
import sys
import threading
import time
from typing import Any


class Progress:
    """Redraws one line a second on a terminal; elsewhere (a log) prints a line when a new section starts."""

    def __init__(self, name: str, stream: Any = None) -> None:
        self.name, self.stream = name, stream or sys.stderr
        self.section, self.index, self.live = "starting the kernel", 0, self.stream.isatty()
        self._stop = threading.Event()

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def _line(self, text: str) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{self.name:<32} {seconds // 60:>2}:{seconds % 60:02d}  {text}"

    def _tick(self) -> None:
        while self.live and not self._stop.wait(1):
            self.stream.write(f"\r\x1b[2K{self._line(self.section)}"[:120])
            self.stream.flush()

    def cell(self, index: int, cell: Any) -> None:
        """Note that cell `index` starts; a markdown heading in it names the section from here on."""
        self.index = index
        heading = re.match(r"#{1,3} +(.+)", cell.source) if cell.cell_type == "markdown" else None
        if heading and heading[1] != self.section:
            self.section = heading[1].strip()
            if not self.live:
                print(self._line(self.section), file=self.stream, flush=True)

    def __exit__(self, error_type: Any, *_error: Any) -> None:
        self._stop.set()
        self._thread.join(2)
        end = "FAILED" if error_type else "done"
        print(("\r\x1b[2K" if self.live else "") + self._line(end), file=self.stream, flush=True)


def relay(process: subprocess.Popen, prefix: str) -> list[str]:
    """All lines that a process prints, to its end; those that begin with `prefix` are shown as they come."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(prefix):
            print(line, end="", flush=True)
    return lines
