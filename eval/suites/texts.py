"""The small text files beside samples: class names, templates, prompts. Paths or URLs, read whole."""

from __future__ import annotations

import json
from typing import Any

from flexiclip.data.reading import read_whole
from flexiclip.errors import UserError

_LARGEST = 2**26  # bytes: CuPL's prompts for ImageNet are 10 MB


def read_text(place: str) -> str | None:
    """The UTF-8 text at a path or URL; None where there is no such file. Raises UserError when it cannot be reached or read."""
    try:
        return read_whole(place, _LARGEST).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{place}: cannot be reached: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place}: not UTF-8 text") from None


def require_text(place: str) -> str:
    """The text at a path or URL. Raises UserError where there is none."""
    text = read_text(place)
    if text is None:
        raise UserError(f"{place}: no such file")
    return text


def lines(text: str) -> tuple[str, ...]:
    """The lines, stripped, without the empty ones at the end."""
    return tuple(line.strip() for line in text.rstrip().splitlines())


def read_json(place: str) -> Any:
    """The JSON at a path or URL. A key that stands twice in an object is a UserError: a class would be lost in silence."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise UserError(f"{place}: {next(name for name in names if names.count(name) > 1)!r} stands twice")
        return found

    try:
        return json.loads(require_text(place), object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from None


def printable(text: str) -> str:
    """A name, path or address as text that can be written: a path's bytes that are not UTF-8 become `\\udcff` and the like."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
