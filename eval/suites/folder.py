"""A folder of images with a folder a class, as torchvision's ImageFolder has it: ROOT/CLASS/**/*.jpg."""

from __future__ import annotations

import os

from flexiclip.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


def class_folders(folder: str) -> list[str]:
    """The names of the class folders, sorted; hidden ones are none. Raises UserError."""
    root = os.path.expanduser(folder)
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"images {folder}: cannot be read: {error.strerror}") from None
    if not names:
        raise UserError(f"images {folder}: holds no folder; each class needs one with its images")
    return names


def class_images(folder: str, name: str) -> list[str]:
    """The image files of a class, sorted, in its folder and those inside it. Raises UserError for a class without any."""
    root = os.path.join(os.path.expanduser(folder), name)
    files = [os.path.join(where, file) for where, _, files in os.walk(root) for file in files if file.lower().endswith(SUFFIXES)]
    if not files:
        raise UserError(f"images {folder}: the class {name!r} has no image; remove its folder or fill it")
    return sorted(files)
