"""A folder of images with a folder a class, read as torchvision's ImageFolder reads it: ROOT/CLASS/**/*.jpg.

Unlike ImageFolder this leaves out what no one means as data: hidden files and folders, a Mac's `._` files and `__MACOSX`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from flexiclip.errors import UserError

from .texts import printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".avif")


def class_folders(folder: str) -> list[str]:
    """The names of the class folders, sorted; a link to a folder is one. Raises UserError."""
    root = os.path.expanduser(folder)
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_junk(entry.name))
    except OSError as error:
        raise UserError(f"images {folder}: cannot be read: {error.strerror}") from None
    if not names:
        raise UserError(f"images {folder}: holds no folder; each class needs one with its images")
    for name in names:
        if printable(name) != name:
            raise UserError(f"images {folder}: the name of the class folder {printable(name)} is not UTF-8; rename it")
    return names


def class_images(folder: str, name: str) -> list[str]:
    """The image files of a class, sorted, in its folder and those inside it, also behind links. Raises UserError for none."""
    root = os.path.join(os.path.expanduser(folder), name)
    try:
        files = [path for path in _files(root, ()) if path.lower().endswith(SUFFIXES)]
    except OSError as error:
        raise UserError(f"images {folder}: the class {name!r} cannot be read: {error.strerror}: {error.filename}") from None
    if not files:
        raise UserError(f"images {folder}: the class {name!r} has no image; remove its folder or fill it")
    return sorted(files)


def _files(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """All files below a folder. above: the folders that hold it, so that a link to one of them ends the way down."""
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_junk(entry.name):
                continue
            if entry.is_dir():
                yield from _files(entry.path, (*above, here))
            else:
                yield entry.path


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
