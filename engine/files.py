"""Files that a crash at any moment leaves whole, and the lock of a folder."""

import fcntl
import io
import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch


def write_file(path: Path, content: bytes) -> None:
    """Replace a file's content at once: a reader, or a crash, finds the old content or the new one, whole.

    Raises OSError where the disk is full; the old file is then untouched.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({e.strerror}); what was saved before stays") from e
    with suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as write_file does."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file, None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save CPU tensors, numbers, lists and dicts."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def lock(folder: Path) -> TextIO:
    """An open file whose lock says that this process uses the folder. Closing it, or dying, releases the lock.

    Raises BlockingIOError if another process holds it.
    """
    path = folder / ".lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BlockingIOError  # the folder was moved aside meanwhile, and there is a new one
    except (BlockingIOError, PermissionError, FileNotFoundError):
        file.seek(0)
        raise BlockingIOError(f"{folder} is in use by another process ({file.read().strip()})") from None
    except OSError as e:  # some network file systems have no locks
        print(
            f"warning: {path}: {e.strerror}; two processes in this folder will not notice each other", file=sys.stderr
        )
    with suppress(OSError):  # on a full disk the first save says so
        path.write_text(f"pid {os.getpid()} on {platform.node()}")
    return file
