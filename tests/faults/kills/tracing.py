"""What a command does to files, and what a power loss leaves of it.

In the command's process, `install` notes each change of a name and each fsync, with the content that this made durable.
Afterwards a `Disk` goes through these notes and builds the worst that may be found when the power comes back. It takes
for granted that a folder exists when it was fsynced, or something in it; nothing else that is not of POSIX.
"""
# Paths are text here, as in audit events.
# ruff: noqa: PTH100, PTH112, PTH115, PTH116, PTH117, PTH118

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

WRITING = os.O_WRONLY | os.O_RDWR
Worst = Literal["names undone", "newest name alone", "data cut off", "data zeroed"]
"""Names are as of the last fsync of their folder; the same, but for the newest rename, which is done; all names are
there, but of each file only what was fsynced; the same, and zeros for the rest."""
WORST: tuple[Worst, ...] = ("names undone", "newest name alone", "data cut off", "data zeroed")


def install(trace: Path, home: str) -> None:
    """Begin to note what this process does below `home`. Notes: one JSON list a line in `trace/notes`."""
    trace.mkdir()
    lock, own, numbers = threading.RLock(), os.getpid(), itertools.count()
    notes = open(trace / "notes", "a", buffering=1)  # noqa: SIM115 (as long as the process)

    def note(*fields: Any) -> None:
        if os.getpid() == own and any(isinstance(part, str) and part.startswith(home) for part in fields):
            with lock:
                notes.write(json.dumps(fields) + "\n")

    def place(path: Any, folder: Any = -1) -> str:
        """Absolute; relative ones are in a folder that is given as a descriptor."""
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        inside = isinstance(folder, int) and folder >= 0 and not os.path.isabs(path)
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if inside else os.path.abspath(path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            if not isinstance(arguments[0], int):
                note("open", place(arguments[0]))
        elif event in ("os.rename", "os.link"):
            source, target = place(arguments[0], arguments[2]), place(arguments[1], arguments[3])
            note(event[3:], source, target, digest_of(source))
        elif event in ("os.remove", "os.rmdir"):
            note("remove", place(*arguments[:2]))
        elif event == "os.mkdir":
            note("mkdir", place(arguments[0], arguments[2]))

    real = os.fsync

    def fsync(fd: Any) -> None:
        real(fd)
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        path = place(descriptor)
        if os.path.isdir(path):
            note("sync folder", path)
        else:
            blob = str(next(numbers))
            content = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            if path.startswith(home):
                (trace / blob).write_bytes(content)
            note("sync", path, blob, os.stat(descriptor).st_mtime_ns)

    os.fsync = os.fdatasync = fsync
    sys.addaudithook(hook)


def digest_of(path: str) -> str:
    """Of a file; '' of a folder."""
    return "" if os.path.isdir(path) else hashlib.sha256(Path(path).read_bytes()).hexdigest()


@dataclass(eq=False)
class Node:
    """A file or folder. `durable`: what a file has on the disk, or the names that a folder has there."""

    is_folder: bool
    durable: bytes = b""
    size: int = 0
    """Of a file: the most that it was seen to have."""
    modified: int = 0
    """Of a file: its time, in ns, when it was fsynced."""
    names: dict[str, Node] = field(default_factory=dict)
    durable_names: dict[str, Node] = field(default_factory=dict)
    is_durable: bool = False
    """It was fsynced; of a folder: it, or something in it."""


class Disk:
    """The folder `home` as it was before a command; `play` lets the command's notes happen."""

    def __init__(self, home: Path, trace: Path) -> None:
        self._home, self._trace = home, trace
        self._root = self._read(home)
        self._newest: tuple[Node, str, Node] | None = None
        self.broken: list[str] = []
        """Renames to names that are not hidden, of files that were not durable as they were."""

    def _read(self, path: Path) -> Node:
        if not path.is_dir():
            content = path.read_bytes()
            return Node(False, content, len(content), path.stat().st_mtime_ns, is_durable=True)
        names = {child.name: self._read(child) for child in path.iterdir()}
        return Node(True, names=names, durable_names=dict(names), is_durable=True)

    def _find(self, path: str) -> tuple[Node, str] | None:
        """(folder, name); None for what lies elsewhere, or in what is gone."""
        if not path.startswith(f"{self._home}/"):
            return None
        *folders, name = Path(path).relative_to(self._home).parts
        node = self._root
        for folder in folders:
            if folder not in node.names:
                return None
            node = node.names[folder]
        return node, name

    def play(self, note: list[Any]) -> None:
        what, *fields = note
        self._newest = None
        if what == "sync folder" and fields[0] == str(self._home):
            self._root.durable_names = dict(self._root.names)
        at = self._find(fields[0])
        if at is None:
            return
        folder, name = at
        if what == "open":
            folder.names.setdefault(name, Node(False))
        elif what == "mkdir":
            folder.names.setdefault(name, Node(True))
        elif what == "remove":
            if name in folder.names and not folder.names[name].names:  # of a folder that is not empty it fails
                del folder.names[name]
        elif name not in folder.names:  # a note comes before what it tells of, which may have failed
            return
        elif what == "sync":
            node = folder.names[name]
            node.durable, node.is_durable = (self._trace / fields[1]).read_bytes(), True
            node.size, node.modified = max(node.size, len(node.durable)), fields[2]
        elif what == "sync folder":
            node = folder.names[name]
            node.durable_names, node.is_durable = dict(node.names), True
        else:
            self._name(what, folder, name, fields)

    def _name(self, what: str, folder: Node, name: str, fields: list[str]) -> None:
        node, target = folder.names[name], self._find(fields[1])
        if what == "rename":
            del folder.names[name]
        if target is None:
            return
        into, new = target
        into.names[new] = node
        self._newest = (into, new, node)
        if not node.is_folder and new[0] != "." and hashlib.sha256(node.durable).hexdigest() != fields[2]:
            self.broken.append(f"{fields[1]}: got its name before its content was fsynced")

    def build(self, worst: Worst, place: Path) -> None:
        """Write to `place` what a power loss leaves now."""
        self._build(self._root, worst, place)

    def _build(self, node: Node, worst: Worst, place: Path) -> None:
        if not node.is_folder:
            # How much is written to a file is known only when it is fsynced; nothing ever is to a lock.
            more = node.size - len(node.durable) if node.is_durable or place.name == ".lock" else 100
            place.write_bytes(node.durable + bytes(more if worst == "data zeroed" else 0))
            os.utime(place, ns=(node.modified, node.modified))
            return
        place.mkdir(exist_ok=True)
        for name, child in self._names(node, worst).items():
            self._build(child, worst, place / name)

    def _names(self, node: Node, worst: Worst) -> dict[str, Node]:
        if worst in ("data cut off", "data zeroed"):
            return node.names
        found = {name: child for name, child in node.durable_names.items() if not child.is_folder}
        found |= {name: child for name, child in (node.durable_names | node.names).items() if self._exists(child)}
        if worst == "newest name alone" and self._newest is not None and self._newest[0] is node:
            found[self._newest[1]] = self._newest[2]
        return found

    def _exists(self, node: Node) -> bool:
        return node.is_folder and (node.is_durable or any(map(self._exists, node.names.values())))


def read_notes(trace: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (trace / "notes").read_text().splitlines()]
