"""The one grammar of MODEL: what the commands, the recipe keys and `load_model` accept as the name of a model.

    runs/NAME, runs/NAME/model          a run folder (its newest model), or a model folder
    open_clip:NAME[/PRETRAINED]         a model of open_clip; PRETRAINED is a tag or a file
    open_clip:hf-hub:ORG/REPO           NAME may also be one of open_clip's own addresses, hf-hub: or local-dir:
    FOLDER                              a folder of open_clip, transformers or timm
    FILE.npz                            a file of big_vision
    FOLDER, FOLDER/PREFIX               the .onnx files that `flexiclip export` wrote

    LABEL=MODEL                         the same with a name of the user's (commands that compare models: split_label)

Endings change the model: `+exitN` leaves the image tower after block N, and `+pi` and its relatives make a ViT of one
patch size run at every length. A path that exists is never split, so a folder may be named `a+pi`.

Parsing reads at most one config.json, and loads neither torch nor another library. Each caller says what it accepts
(`Accepted`), and gets an error that lists this for everything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from flexiclip.errors import UserError
from flexiclip.files import read_json

OPEN_CLIP = "open_clip:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
FLEXES = ("pi", "bilinear", "bicubic", "area", "norm")
"""The endings that resize the patch kernel of a model (eval/models/flex.py)."""


class Kind(Enum):
    """The kinds of models. The value is how messages describe the kind."""

    MODEL = "a model folder or a run folder"
    OPEN_CLIP = "open_clip:NAME[/PRETRAINED] or a folder of open_clip"
    TRANSFORMERS = "a folder of transformers"
    TIMM = "a folder of timm"
    BIG_VISION = "a .npz file of big_vision"
    ONNX = "a folder or a prefix of .onnx files of `flexiclip export`"
    WEIGHTS = "a weight file, or a folder of them"


@dataclass(frozen=True)
class Accepted:
    """The kinds of models that a caller accepts, and whether it accepts the ending `+exitN` and those of FLEXES."""

    kinds: tuple[Kind, ...]
    exits: bool = False
    flexes: bool = False

    def __str__(self) -> str:
        endings = ["+exitN"] * self.exits + [f"+{flex}" for flex in FLEXES if self.flexes]
        return ", ".join(kind.value for kind in self.kinds) + (f", optionally with {' or '.join(endings)}" if endings else "")


LOADED = Accepted((Kind.MODEL,), exits=True)
"""What load_model accepts."""


OPENED = Accepted((Kind.MODEL, Kind.OPEN_CLIP, Kind.TRANSFORMERS, Kind.TIMM, Kind.BIG_VISION))
"""What can be opened and trained further."""


@dataclass(frozen=True)
class ModelSource:
    """A parsed MODEL.

    `path` is the model folder (that inside a run folder), or the folder or file of another library; it has no meaning for
    open_clip:NAME. `name` and `pretrained` are those of an open_clip model, whose name is local-dir:FOLDER for a folder.
    `files` are exported encoders. `exit` and `flex` are the endings.
    """

    text: str  # as the user wrote it
    kind: Kind
    path: Path
    name: str = ""
    pretrained: str | None = None
    files: tuple[Path, ...] = ()
    exit: int | None = None
    flex: str | None = None


def parse_model(text: str, accepted: Accepted, key: str | None = None) -> ModelSource:
    """Parse the name of a model.

    `key` is the recipe key that has this value, for the error message. Raises UserError, which lists what is accepted, if
    there is no such model, or if its kind or its ending is not accepted.
    """
    label = text if key is None else f"{key}={text}"
    plain, exit, flex = _split_endings(text)
    found = _find(plain)
    if found is None or (found.kind is Kind.WEIGHTS and Kind.WEIGHTS not in accepted.kinds):
        known = f"it lacks {WEIGHTS} and {CONFIG}, or another library's config"
        known = known if found else f"there is no such file or folder{_hub_hint(plain)}"
        raise UserError(f"{label} is not a model: {known}; give {accepted}")
    if found.kind not in accepted.kinds:
        raise UserError(f"{label}: {found.kind.value} is not accepted here; give {accepted}")
    if (exit is not None and not accepted.exits) or (flex is not None and not accepted.flexes):
        raise UserError(f"{label}: the ending {text.removeprefix(plain)} is not accepted here; give {accepted}")
    if exit is not None and found.kind is not Kind.MODEL:
        raise UserError(f"{label}: only a model folder or a run folder has exits; leave the ending +exit{exit} out")
    return replace(found, text=text, exit=exit, flex=flex)


def split_label(text: str) -> tuple[str | None, str]:
    """Split LABEL=MODEL into (LABEL, MODEL). The label is None if there is none, or if the whole text names a path.

    A label has no slash and no colon, so the name of a folder such as runs/lr=0.1 is never taken for one.
    """
    label, equals, model = text.partition("=")
    if not equals or not label.strip() or "/" in label or ":" in label or Path(_split_endings(text)[0]).exists():
        return None, text
    return label.strip(), model


def split_open_clip(name: str) -> tuple[str, str | None]:
    """Split NAME[/PRETRAINED] into the two. A name with a scheme (hf-hub:, local-dir:) has its own weights and is not split."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, None
    base, _, pretrained = name.partition("/")
    return base, pretrained or None


def _hub_hint(plain: str) -> str:
    """Return how to fetch a model whose name looks like one of the Hugging Face hub, OWNER/NAME; else an empty text."""
    name = re.sub(r"^(hf-hub:|hf://|https://huggingface\.co/)", "", plain).rstrip("/")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or (name == plain and Path(name).parent.is_dir()):
        return ""
    folder = name.partition("/")[2]
    return (
        f"; a model on the Hugging Face hub is fetched with `flexiclip import hf-hub:{name} --format open_clip --output "
        f"{folder}` if open_clip wrote it, else with `hf download {name} --local-dir {folder}`"
    )


def is_model_folder(folder: Path) -> bool:
    """Return whether the folder directly contains weights and a config of flexiclip."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _split_endings(text: str) -> tuple[str, int | None, str | None]:
    """Split `A+exit2+pi` into ("A", 2, "pi"). What is missing is None."""
    exit = flex = None
    plain, plus, ending = text.rpartition("+")
    if plain and plus and ending in FLEXES and not Path(text).exists():
        text, flex = plain, ending
    match = re.fullmatch(r"(.+)\+exit(\d{1,4})", text)
    if match and not Path(text).exists():
        text, exit = match[1], int(match[2])
    return text, exit, flex


def _find(plain: str) -> ModelSource | None:
    """Find the model with this name, which has no endings. Return None if there is nothing."""
    path = Path(plain)
    if not plain:
        return None
    if plain.startswith(OPEN_CLIP):
        name = plain.removeprefix(OPEN_CLIP)
        return ModelSource(plain, Kind.OPEN_CLIP, Path(name.removeprefix("local-dir:")), *split_open_clip(name))
    for folder in (path, path / "model"):
        if is_model_folder(folder):
            return ModelSource(plain, Kind.MODEL, folder)
    if (path / OPEN_CLIP_CONFIG).is_file():
        return ModelSource(plain, Kind.OPEN_CLIP, path, f"local-dir:{plain}")
    if (path / "config.json").is_file():
        transformers = "model_type" in read_json(path / "config.json")
        return ModelSource(plain, Kind.TRANSFORMERS if transformers else Kind.TIMM, path)
    if files := _exported_files(path):
        return ModelSource(plain, Kind.ONNX, path, files=files)
    if not path.exists():
        return None
    return ModelSource(plain, Kind.BIG_VISION if path.suffix == ".npz" else Kind.WEIGHTS, path)


def _exported_files(path: Path) -> tuple[Path, ...]:
    """Return the sorted .onnx files of a folder, or else those in the parent folder whose names begin with the last part."""
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    return tuple(sorted(file for file in folder.glob("*.onnx") if file.name.startswith(prefix) and file.is_file()))
