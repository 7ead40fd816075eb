"""What every page of the harness shares: its style, a policy that lets nothing else run, and pictures inside the file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).with_name("page")
PAGE_BYTES = 4 << 20


def style() -> str:
    """The style sheet."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def policy(script: str | None = None) -> str:
    """A Content-Security-Policy that allows the page its own style and script, by their hashes, and nothing else."""
    scripts = "" if script is None else f"script-src '{_hash(script)}'; "
    return f"default-src 'none'; img-src data:; style-src '{_hash(style())}'; {scripts}base-uri 'none'; form-action 'none'"


def frame(body: str, *, title: str, lead: str, contents: str, script: str | None = None) -> str:
    """A whole page around `body`, which may hold that script alone. title, lead: plain text; contents: links."""
    texts = {"title": escape(title), "lead": escape(lead)}
    return fill("frame.html", {"policy": policy(script), "style": style(), "contents": contents, "body": body.rstrip()} | texts)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """A file of page/ with its `<!-- name -->` replaced, in one pass: a filled text is never a field."""
    text = (FOLDER / template).read_text(encoding="utf-8")
    return re.sub(r"<!-- (\w+) -->", lambda match: fields[match[1]], text)


def inline_pictures(pictures: Sequence[tuple[Path, str]], room: int) -> str:
    """(PNG file, what it shows) as img elements that hold the file, until `room` bytes are full; then the file's name."""
    parts = []
    for file, alt in pictures:
        encoded = base64.b64encode(file.read_bytes()).decode("ascii")
        room -= len(encoded)
        inside = f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'
        parts.append(inside if room > 0 else f"<p>The picture is in <code>{escape(file.name)}</code> beside this page.</p>")
    return "".join(parts)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
