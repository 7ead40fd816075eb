"""Shape or texture: by which of them does a model name an image whose two cues disagree (Geirhos et al., arXiv 1811.12231)?

    flexiclip analyze MODEL --suite openmoji --only cue-conflict --cue-conflict data/cue-conflict --output runs/analysis

The folder has the layout of Geirhos's images: SHAPE/SHAPE1-TEXTURE2.png, where the numbers tell drawings apart. `flexiclip data
cue-conflict` builds one. The classes are the shapes and the textures that occur, in the words of their folders and files. The
templates come from the folder's zeroshot_classification_templates.txt, if there is one. Shape bias is the share of shape among
the answers that are either the shape or the texture. A weak model seldom answers either, so the analysis also reports the choice
between these two alone, which every image decides. Images whose two cues are the same class are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from flexiclip_eval.analysis.subject import Finding, Subject, Table
from flexiclip_eval.data.images import ImageBlock
from flexiclip_eval.embeddings.embed import class_embeddings, to_device, unit_rows
from flexiclip_eval.models.protocol import has_text
from flexiclip_eval.report.drawing import chance_line, curve, grid, legend, percent_axis, token_axis
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import class_folders, class_images, class_templates
from flexiclip_eval.suites.task import DEFAULT_TEMPLATES, fill_templates
from numpy.typing import NDArray
from torch import Tensor

from flexiclip.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS_FOLDER = "give --cue-conflict DIR, Geirhos's images or those of `flexiclip data cue-conflict`"
_NAME = re.compile(r"([A-Za-z_ ]+)\d+-([A-Za-z_ ]+)\d+")


@dataclass(frozen=True)
class Conflict:
    """An image and its two cues. number: its place among all images of the folder, in the order of classes and files."""

    number: int
    shape: str
    texture: str


def read_conflicts(folder: Path) -> list[Conflict]:
    """Return the images of a folder whose cues differ, sorted.

    Raises UserError for a file name that does not contain both cues, and for a folder without such an image.
    """
    images = [(path, name) for name in class_folders(str(folder)) for path in class_images(str(folder), name)]
    conflicts = []
    for number, (path, name) in enumerate(images):
        match = _NAME.match(Path(path).stem)
        if match is None or match[1] != name:
            raise UserError(f"--cue-conflict {path}: the name must be {name}1-TEXTURE1.png, the shape of its folder first")
        if match[1] != match[2]:
            conflicts.append(Conflict(number, match[1], match[2]))
    if not conflicts:
        raise UserError(f"--cue-conflict {folder}: every image has the texture of its own shape; nothing conflicts")
    return conflicts


@dataclass(frozen=True)
class Answer:
    """The class that a model names, and whether its shape is nearer than its texture."""

    named: str
    shape_nearer: bool


@dataclass(frozen=True)
class Bias:
    """The answers of a model at one length. Shares are of the images; `bias` is a share of the answers that are either cue."""

    images: int
    shape: float
    texture: float
    bias: float | None  # None if no answer is either cue
    nearer: float  # images nearer to the words of the shape than to those of the texture, whichever class is nearest
    by_shape: dict[str, float | None]  # the bias for the images of each shape


def bias_of(answers: Sequence[Answer], conflicts: Sequence[Conflict]) -> Bias:
    """Return the bias of the answers. answers and conflicts: in the same order."""
    named = np.array([answer.named for answer in answers])
    shapes = np.array([conflict.shape for conflict in conflicts])
    shape, texture = named == shapes, named == np.array([conflict.texture for conflict in conflicts])

    def bias(images: NDArray[np.bool_]) -> float | None:
        either = (shape | texture)[images].sum()
        return float(shape[images].sum() / either) if either else None

    by_shape = {str(name): bias(shapes == name) for name in np.unique(shapes)}
    nearer = np.mean([answer.shape_nearer for answer in answers])
    everything = np.ones_like(shape)
    return Bias(len(named), float(shape.mean()), float(texture.mean()), bias(everything), float(nearer), by_shape)


def answers(
    subject: Subject, folder: Path, conflicts: Sequence[Conflict], classes: Sequence[str]
) -> tuple[dict[int, list[Answer]], list[Conflict]]:
    """Return the model's answer to each readable image of the folder, by length, and these images."""
    templates = class_templates(str(folder)) or DEFAULT_TEMPLATES
    prompts = [fill_templates(templates, [name.replace("_", " ")]) for name in classes]
    class_z = class_embeddings(subject.encoding.texts, prompts)
    block = ImageBlock(
        DatasetConfig(images=str(folder)), subject.loaded.transform, workers=subject.options.workers, cache_bytes=0
    )
    given: dict[int, list[Answer]] = {length: [] for length in subject.lengths}
    kept = []
    for start in range(0, len(conflicts), subject.options.batch_size):
        part = {conflict.number: conflict for conflict in conflicts[start : start + subject.options.batch_size]}
        pixels, records = block.pick([*part])
        readable = [part[record.number] for record in records]
        kept += readable
        if not readable:
            continue
        images = to_device(subject.loaded, pixels, subject.encoding.device)
        for length in subject.lengths:
            with torch.no_grad():
                scores = (unit_rows(subject.model.encode_image(images, seqhw=length)) @ class_z.T).cpu()
            given[length] += [_answer(row, conflict, classes) for row, conflict in zip(scores, readable, strict=True)]
    if not kept:
        raise UserError(f"--cue-conflict {folder}: none of its {len(conflicts)} images can be read")
    return given, kept


def _answer(scores: Tensor, conflict: Conflict, classes: Sequence[str]) -> Answer:
    shape, texture = (scores[classes.index(cue)] for cue in (conflict.shape, conflict.texture))
    return Answer(classes[int(scores.argmax())], bool(shape > texture))


def analyze(subject: Subject) -> Finding:
    """Compute the bias at every length. Raises UserError for a model without a text tower, or a folder with another layout."""
    folder = subject.options.cue_conflict
    if folder is None:
        raise UserError(f"cue-conflict: {NEEDS_FOLDER}")
    if not has_text(subject.loaded):
        raise UserError("cue-conflict needs the model's text half to name what it sees, and the model is an image tower alone")
    conflicts = read_conflicts(folder)
    classes = sorted({name for conflict in conflicts for name in (conflict.shape, conflict.texture)})
    given, kept = answers(subject, folder, conflicts, classes)
    found = {length: bias_of(given[length], kept) for length in subject.lengths}
    shortest, longest = subject.lengths[0], subject.lengths[-1]
    first, last = found[shortest], found[longest]
    return Finding(
        title="Shape or texture",
        method=f"{first.images} images whose shape is of one class and whose texture of another (arXiv 1811.12231). Shape bias: "
        "the share of shape among the answers that are either.",
        sentence=f"Shape bias {_percent(first.bias)} at seqhw {shortest} and {_percent(last.bias)} at {longest}; "
        f"{first.shape + first.texture:.0%} and {last.shape + last.texture:.0%} of the answers are either cue, of luck alone "
        f"{2 / len(classes):.0%}. Between the two alone {first.nearer:.0%} and {last.nearer:.0%} go to the shape.",
        numbers={
            "folder": str(folder),
            "unreadable": len(conflicts) - len(kept),
            "classes": classes,
            "lengths": {str(length): asdict(bias) for length, bias in found.items()},
        },
        table=Table(
            ("seqhw", "shape bias", "answers: shape", "answers: texture", "shape, of the two alone"),
            [(str(n), _percent(b.bias), f"{b.shape:.1%}", f"{b.texture:.1%}", f"{b.nearer:.1%}") for n, b in found.items()],
        ),
        figures={"cue_conflict": (_draw(found), "0.5: shape and texture name as many images.")},
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _draw(found: Mapping[int, Bias]) -> Figure:
    """Draw the shape bias, and the shares of the answers that are the shape or the texture, against the length."""
    figure, ((axis,),) = grid(1, 1, (8.4, 4.2))
    shares: dict[str, list[float | None]] = {
        "shape bias": [bias.bias for bias in found.values()],
        "answers: shape": [bias.shape for bias in found.values()],
        "answers: texture": [bias.texture for bias in found.values()],
        "shape, of the two alone": [bias.nearer for bias in found.values()],
    }
    lengths = [length**2 for length in found]
    for number, (label, values) in enumerate(shares.items()):
        points = [(x, y) for x, y in zip(lengths, values, strict=True) if y is not None]
        curve(axis, points, number, label, linestyle="--" if number else "-", linewidth=1.5 if number else 2.5)
    chance_line(axis, 0.5)
    token_axis(axis, lengths, [*map(str, lengths)], "tokens per image")
    axis.set_ylim(0, 1)
    percent_axis(axis)
    legend(axis)
    return figure
