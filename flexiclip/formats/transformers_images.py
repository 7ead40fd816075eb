"""Reader of the image preparation of a transformers folder. A setting that we do not have raises an error that names it.

The settings are in `processor_config.json` under `image_processor` (transformers 5) or in `preprocessor_config.json`.
They have the meaning that they have for the image processors of CLIP, SigLIP and ViT (image_processing_backends.py of
transformers): resize, centre crop, rescale, normalise. A missing setting has the default of its class, except that
missing sizes are those of the tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from flexiclip.config.schema import PreprocessConfig, sides
from flexiclip.errors import UserError
from flexiclip.files import read_json

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_OTHER_FILTERS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class _Class:
    """The defaults of a class of image processors. `square` is the meaning of a `size` that is a single number."""

    mean: Triple
    std: Triple
    resample: int
    crops: bool
    square: bool


_CLASSES = {
    "CLIPImageProcessor": _Class(_CLIP_MEAN, _CLIP_STD, 3, crops=True, square=False),
    "SiglipImageProcessor": _Class((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3, crops=False, square=False),
    "ViTImageProcessor": _Class((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 2, crops=False, square=True),
}


def read_image_processor(folder: Path, siglip: bool, tower: tuple[int, int]) -> tuple[PreprocessConfig, list[str]]:
    """Return how the folder prepares images for a tower of (height, width) pixels, and notes.

    Raises UserError if our transform cannot do the same.
    """
    own = "SiglipImageProcessor" if siglip else "CLIPImageProcessor"
    path, said = _find(folder)
    name = _class_name(said, path) or own
    if name not in _CLASSES:
        raise _refused(path, f"its images are prepared by {name}", f"ours are those of {', '.join(_CLASSES)}")
    settings = _Settings(path, said, _CLASSES[name])
    resize = settings.resize(tower)
    scale = 255 * settings.factor()
    mean, std = settings.colours()
    preprocess = PreprocessConfig(
        mean=_times(mean, 1 / scale),
        std=_times(std, 1 / scale),
        resize=resize,
        interpolation=settings.interpolation(),
    )
    if not said:
        return preprocess, [f"{folder} does not say how it prepares images: as {own} does by default"]
    return preprocess, settings.notes


def _find(folder: Path) -> tuple[Path, Mapping[str, object]]:
    """Return the file with the settings, and the settings, which are empty if the folder has none.

    The newer form is tried first, as in transformers.
    """
    newer, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    if newer.is_file():
        nested = read_json(newer).get("image_processor")
        if isinstance(nested, dict):
            return newer, nested
        if nested is not None:
            raise _refused(newer, "its image_processor is not an object", "write one as transformers does")
    return older, read_json(older) if older.is_file() else {}


def _class_name(said: Mapping[str, object], path: Path) -> str | None:
    """Return the class without the endings of older versions of transformers, or None if the file does not name a class."""
    if said.get("auto_map"):
        raise _refused(path, "its images are prepared by code of its own (auto_map)", "such code is never run")
    named = said.get("image_processor_type") or said.get("feature_extractor_type")
    if named is None:
        return None
    plain = str(named).removesuffix("Fast").removesuffix("Pil")
    return plain.replace("FeatureExtractor", "ImageProcessor")


class _Settings:
    """The settings of one file, with the defaults of its class."""

    def __init__(self, path: Path, said: Mapping[str, object], kind: _Class) -> None:
        self.path, self.said, self.kind = path, said, kind
        self.notes: list[str] = []
        if self._switch("do_pad", False):
            raise _refused(path, "it pads images (do_pad: true)", "ours fill the tower's square by resizing and cropping")
        if self._switch("use_square_size", False):
            raise _refused(path, "use_square_size is a setting of KOSMOS-2", 'give "size" a height and a width')

    def resize(self, tower: tuple[int, int]) -> Literal["shortest", "squash"]:
        """Return the way to resize, which is "shortest" or "squash".

        Raises UserError if the images end with another size than the tower's, or if they are cropped in another way than
        ours.
        """
        if not self._switch("do_resize", True):
            raise _refused(self.path, "it does not resize images (do_resize: false)", "ours always do; set it to true")
        shape = self._size("size", self.kind.square, tower)
        crops = self._switch("do_center_crop", self.kind.crops)
        if isinstance(shape, int):
            if not crops:
                said = "images keep their shape (a size of one side without do_center_crop), but the tower takes squares"
                raise _refused(self.path, said, "set do_center_crop to true, or give size a height and a width")
            final = (shape, shape)
        else:
            final = shape
        cut = self._size("crop_size", True, final) if crops else final
        if cut != final:
            said = f"images are resized to {_shown(shape)} and then cut to {_shown(cut)}"
            raise _refused(self.path, said, f"ours are cut along the long side alone: set size and crop_size to {_shown(tower)}")
        if final != tower:
            said = f"it makes images of {_shown(final)} pixels, but the tower of config.json takes {_shown(tower)}"
            raise _refused(self.path, said, "set size and crop_size to that")
        return "shortest" if isinstance(shape, int) else "squash"

    def interpolation(self) -> Literal["bilinear", "bicubic"]:
        """Return the filter of the resize. Raises UserError for a filter other than our two."""
        number = self.said.get("resample", self.kind.resample)
        if isinstance(number, int) and not isinstance(number, bool) and number in _FILTERS:
            return _FILTERS[number]
        name = _OTHER_FILTERS.get(number, "unknown") if isinstance(number, int) else "unknown"
        raise _refused(self.path, f"it resizes with the filter {number!r} ({name})", "ours are 2 (bilinear) and 3 (bicubic)")

    def factor(self) -> float:
        """Return the factor by which pixels of 0 to 255 are multiplied."""
        if not self._switch("do_rescale", True):
            self.notes.append("pixels are normalised as they are, from 0 to 255 (do_rescale: false)")
            return 1.0
        given = self.said.get("rescale_factor", 1 / 255)
        if not _is_number(given) or given <= 0:
            raise _refused(self.path, f"rescale_factor is {given!r}", "a number above 0 is expected")
        if not math.isclose(given, 1 / 255, rel_tol=1e-6):
            self.notes.append(f"pixels are multiplied with {given:g} before they are normalised (rescale_factor)")
            return float(given)
        return 1 / 255

    def colours(self) -> tuple[Triple, Triple]:
        """Return the mean and the standard deviation of the rescaled pixels, by channel."""
        if not self._switch("do_normalize", True):
            self.notes.append("no mean is subtracted from pixels, and they are not divided by a deviation (do_normalize: false)")
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mean, std = self._triple("image_mean", self.kind.mean), self._triple("image_std", self.kind.std)
        if min(std) <= 0:
            raise _refused(self.path, f"image_std is {list(std)}", "numbers above 0 are expected")
        return mean, std

    def _switch(self, key: str, default: bool) -> bool:
        """Return a setting that is true or false."""
        value = self.said.get(key, default)
        if value is None:  # transformers treats null as false
            return False
        if not isinstance(value, bool):
            raise _refused(self.path, f"{key} is {value!r}", "true or false is expected")
        return value

    def _triple(self, key: str, default: Triple) -> Triple:
        """Return a setting of three numbers, or of one number for all three channels."""
        value = self.said.get(key, default)
        values = [value] * 3 if _is_number(value) else value
        numbers = [float(v) for v in values if _is_number(v)] if isinstance(values, list | tuple) and len(values) == 3 else []
        if len(numbers) != 3:
            raise _refused(self.path, f"{key} is {value!r}", "three numbers, or one for all channels, are expected")
        return numbers[0], numbers[1], numbers[2]

    def _size(self, key: str, square: bool, default: tuple[int, int]) -> int | tuple[int, int]:
        """Return a setting of a size: a short side, or (height, width)."""
        value = self.said.get(key)
        if value is None:
            return default[0] if key == "size" and self.kind.crops and default[0] == default[1] else default
        if isinstance(value, dict):
            given = {name: number for name, number in value.items() if number is not None}
            if given.keys() == {"shortest_edge"} and key == "size":
                value, square = given["shortest_edge"], False
            elif given.keys() == {"height", "width"}:
                value = [given["height"], given["width"]]
        given_sides = value if isinstance(value, list) and len(value) == 2 else [value]
        sides = [n for n in given_sides if isinstance(n, int) and not isinstance(n, bool) and n > 0]
        if len(sides) != len(given_sides):
            raise _refused(self.path, f"{key} is {value!r}", "a height and a width, or one shortest_edge, is expected")
        return (sides[0], sides[-1]) if len(sides) == 2 or square else sides[0]


def _times(triple: Triple, factor: float) -> Triple:
    return triple[0] * factor, triple[1] * factor, triple[2] * factor


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(size: int | tuple[int, int]) -> str:
    return f"a short side of {size}" if isinstance(size, int) else sides(size)


def _refused(path: Path, what: str, instead: str) -> UserError:
    """Return the error that names the file, the setting, and what to do instead."""
    return UserError(f"{path}: {what}; {instead}")
