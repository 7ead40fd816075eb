"""`flexiclip export model`: write a whole model in another library's format, open it there, and compare it with ours.

The folder or file appears complete or not at all, and existing files are never overwritten.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from flexiclip.config.schema import Size
from flexiclip.errors import UserError
from flexiclip.export.agreement import EXACT, check, image_cases, text_cases
from flexiclip.export.card import Exported, model_card
from flexiclip.export.encoder_facts import Origin
from flexiclip.files import folder_aside, writing
from flexiclip.formats import big_vision_writer as big_vision
from flexiclip.formats import open_clip_writer as open_clip
from flexiclip.formats import timm_writer as timm
from flexiclip.formats import transformers_writer as transformers
from flexiclip.formats.written import Written
from flexiclip.libraries import quiet
from flexiclip.model_folder import LoadedModel

_FOLDERS: dict[str, Callable[[LoadedModel, Size | None, Path], Written]] = {
    "open_clip": open_clip.write,
    "timm": timm.write,
    "transformers": transformers.write,
}
FORMATS = (*_FOLDERS, "big_vision")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def export_model(
    model: str, output: Path, format: str, seqhw: Size | None = None, images: str | None = None, hub: str | None = None
) -> Exported:
    """Write a model folder in another library's format.

    `seqhw` is the length that the result is fixed to; the default is the model's own. It does not apply to big_vision,
    whose file keeps all lengths. `images` is a folder or shards to compare on. `hub` is the repository ORG/REPO that an
    open_clip folder will be uploaded to; its files then name the repository, and no longer their path. Raises UserError
    with the reason if the format cannot express the model, and Disagreement if the other library computes something else.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: a model is written as one of {', '.join(FORMATS)}")
    for option, value in (("--images", images), ("--seqhw", seqhw)):
        if format == "big_vision" and value is not None:
            raise UserError(f"{option} has no meaning for --format big_vision: it keeps the base kernel, and so every length")
    if hub is not None and format != "open_clip":
        raise UserError(f"--hub has no meaning for --format {format}: its files name no place, so upload them as they are")
    if hub is not None and not _REPOSITORY.fullmatch(hub):
        raise UserError(f"--hub {hub}: write ORG/REPO, the name of a repository on the Hugging Face hub")
    origin = Origin.open(model)
    loaded = origin.loaded
    if loaded.config.model.image.flexible == "stride":
        raise UserError(f"--format {format}: this format cannot express patches that overlap (model.image.flexible=stride)")
    if format == "big_vision":
        return _file(origin, output)
    tower = loaded.model.image_tower
    grid = tower.grid_of(tower.image_size, seqhw)
    return _folder(origin, output, format, grid, images, hub)


def _folder(origin: Origin, output: Path, format: str, grid: tuple[int, int], images: str | None, hub: str | None) -> Exported:
    """Write the model as a folder, compare it, and add the card. The folder is removed if anything fails."""
    loaded = origin.loaded
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: something is there already; name a new folder")
    with writing(f"--output {output}"):
        output.mkdir(parents=True, exist_ok=True)
    try:
        with writing(f"--output {output}"), quiet():
            written = _FOLDERS[format](loaded, grid, output)
        if hub is not None:
            written = open_clip.name_on_hub(written, output, hub)
        side = grid[0] if grid[0] == grid[1] else grid
        account = [f"{output}: {format} model at seqhw {side}", *written.notes]
        if written.encode_image is not None:
            found = check(f"{output} (images)", written.encode_image, image_cases(loaded, grid, images), EXACT)
            account += map(str, found)
        if written.encode_text is not None:
            account += map(str, check(f"{output} (texts)", written.encode_text, text_cases(loaded), EXACT))
        card = model_card(origin, output.name, written.usage, account)
        with writing(f"--output {output}"):
            (output / "README.md").write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
    return Exported((output,), tuple(account))


def _file(origin: Origin, output: Path) -> Exported:
    """Write the model as big_vision's single file, with the card next to it."""
    if output.suffix != ".npz":
        raise UserError(f"--output {output}: big_vision's format is one file, name it .npz")
    if output.exists():
        raise UserError(f"--output {output}: something is there already; name a new file")
    with folder_aside(output) as folder:
        file, card = folder / output.name, folder / "card.md"
        written = big_vision.write(origin.loaded, file, output.name)
        account = [f"{output}: big_vision model with its base kernel and grid, for every length", *written.notes]
        card.write_text(model_card(origin, output.name, written.usage, account), encoding="utf-8")
        card.replace(output.with_suffix(".md"))
        file.replace(output)
    return Exported((output,), tuple(account))
