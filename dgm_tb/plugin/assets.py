"""The tab's own files, as they are served: whole, but the scripts without their comments.

The scripts' documentation is a quarter of what a browser would have to load. Comment lines become empty ones, so that
positions in error messages stay true; vendored files are served as they are.
"""

import hashlib
import mimetypes
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_MIME_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}


def find() -> tuple[str, dict[str, Path]]:
    """A short hash of the tab's files, and the files by their path inside the folder."""
    paths = sorted(path for path in STATIC.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12], {path.relative_to(STATIC).as_posix(): path for path in paths}


def served(path: Path) -> tuple[bytes, str]:
    """A file's content as it is sent to the browser, and its type."""
    mime = _MIME_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
    content = path.read_bytes()
    is_own_script = path.suffix == ".js" and "vendor" not in path.parts
    return (_cached(content) if is_own_script else content), mime


@cache
def _cached(content: bytes) -> bytes:
    return without_comments(content.decode()).encode()


def without_comments(script: str) -> str:
    """A script with an empty line in the place of every line that is nothing but comment."""
    lines, is_inside = [], False
    for line in script.split("\n"):
        text = line.strip()
        if not is_inside and text.startswith("//"):
            lines.append("")
            continue
        is_inside = is_inside or text.startswith("/*")
        lines.append("" if is_inside and (text.endswith("*/") or "*/" not in text) else line)
        is_inside = is_inside and "*/" not in text
    return "\n".join(lines)
