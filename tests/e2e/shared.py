"""Appliances that many tests share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from appliance import Appliance, make_disk


def new_folder() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="platter-", dir=memory if memory.is_dir() else None))


class Shared:
    """An appliance for all tests of a session or module, started again when one has ended it."""

    def __init__(self, content: bytes, size: int, append: str = "") -> None:
        self.append = append
        self.folder = new_folder()
        self.disk = make_disk(self.folder / "disk.raw", size, content)
        self.started: list[Appliance] = []

    def get(self) -> Appliance:
        if not self.started or not self.started[-1].is_alive():
            place = self.folder / f"appliance{len(self.started)}"
            self.started.append(Appliance(place, [self.disk], append=self.append).start())
        return self.started[-1]

    def end(self) -> None:
        try:
            if self.started and not self.started[-1].end_is_known:
                self.started[-1].stop()
        finally:
            for appliance in self.started:
                appliance.close()
            shutil.rmtree(self.folder)
