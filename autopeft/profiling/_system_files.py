"""Files in which an operating system tells about itself."""

from __future__ import annotations

from pathlib import Path


def system_text(path: Path) -> str:
    """Returns a system file's text without the blanks around it; nothing where this system lacks or hides it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
