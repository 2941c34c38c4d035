"""Writes a cpio archive in the "newc" format, which Linux unpacks as its initramfs.

Done here because the archive's owner and modes then need neither root nor a staging folder.
"""

import stat
from pathlib import Path


class Archive:
    """Collects folders, files and links; finish() gives the archive's bytes. All owned by root."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._inode = 0
        self._folders: set[str] = set()

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._pad()
        self._bytes += content
        self._pad()

    def _pad(self) -> None:
        self._bytes += b"\0" * (-len(self._bytes) % 4)

    def folder(self, name: str) -> None:
        if name in ("", ".") or name in self._folders:
            return
        self.folder(str(Path(name).parent))
        self._folders.add(name)
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        self.folder(str(Path(name).parent))
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self.folder(str(Path(name).parent))
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._bytes)
