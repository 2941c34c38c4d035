"""QEMU's machine protocol: what an operator tells the emulator while the appliance runs."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ANSWER_S = 20


def qmp_words(path: Path) -> str:
    """For QEMU's command line."""
    return f"-qmp unix:{path},server=on,wait=off"


class Qmp:
    """A session with one emulator."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < deadline, f"QEMU does not listen at {path}"
                time.sleep(0.02)
        self._lines = self._socket.makefile("r")
        assert "QMP" in json.loads(self._lines.readline())
        self("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()

    def answer(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The whole answer, which may be an error."""
        message = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer: dict[str, Any] = json.loads(self._lines.readline())
            if "event" not in answer:
                return answer

    def __call__(self, command: str, **arguments: Any) -> Any:
        answer = self.answer(command, **arguments)
        assert "return" in answer, f"{command}: {answer}"
        return answer["return"]
