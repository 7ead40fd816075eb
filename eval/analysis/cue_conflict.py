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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from flexiclip_eval.analysis import figures
from flexiclip_eval.analysis.subject import Bias, Finding, Subject, Table
from flexiclip_eval.data.files import read_image
from flexiclip_eval.embeddings.embed import class_embeddings, embed_texts, to_device, unit_rows
from flexiclip_eval.models.protocol import has_text
from flexiclip_eval.suites.layout import class_folders, class_images, class_templates
from flexiclip_eval.suites.task import DEFAULT_TEMPLATES, fill_templates
from torch import Tensor

from flexiclip.data.samples import BadSample
from flexiclip.errors import UserError

MEND = "give --cue-conflict DIR, Geirhos's images or those of `flexiclip data cue-conflict`"
_NAME = re.compile(r"([A-Za-z_ ]+)\d+-([A-Za-z_ ]+)\d+")


@dataclass(frozen=True)
class Conflict:
    """An image file and its two cues."""

    path: str
    shape: str
    texture: str


def read_conflicts(folder: Path) -> list[Conflict]:
    """Return the images of a folder whose cues differ, sorted.

    Raises UserError for a file name that does not contain both cues, and for a folder without such an image.
    """
    conflicts = []
    for name in class_folders(str(folder)):
        for path in class_images(str(folder), name):
            match = _NAME.match(Path(path).stem)
            if match is None or match[1] != name:
                raise UserError(f"--cue-conflict {path}: the name must be {name}1-TEXTURE1.png, the shape of its folder first")
            if match[1] != match[2]:
                conflicts.append(Conflict(path, match[1], match[2]))
    if not conflicts:
        raise UserError(f"--cue-conflict {folder}: every image has the texture of its own shape; nothing conflicts")
    return conflicts


@dataclass(frozen=True)
class Answer:
    """The class that a model names, and whether its shape is nearer than its texture."""

    named: str
    shape_nearer: bool


def bias_of(answers: Sequence[Answer], conflicts: Sequence[Conflict]) -> Bias:
    """Return the bias of the answers. answers and conflicts: in the same order."""
    pairs = [(answer.named, conflict) for answer, conflict in zip(answers, conflicts, strict=True)]
    shape, texture = _counts(pairs)
    by_shape = {}
    for name in sorted({conflict.shape for conflict in conflicts}):
        by_shape[name] = _share(*_counts([pair for pair in pairs if pair[1].shape == name]))
    nearer = sum(answer.shape_nearer for answer in answers) / len(pairs)
    return Bias(len(pairs), shape / len(pairs), texture / len(pairs), _share(shape, texture), nearer, by_shape)


def _counts(pairs: Sequence[tuple[str, Conflict]]) -> tuple[int, int]:
    """Count the answers that are the shape of their image, and those that are the texture."""
    return sum(named == c.shape for named, c in pairs), sum(named == c.texture for named, c in pairs)


def _share(one: int, other: int) -> float | None:
    return one / (one + other) if one + other else None


def answers(
    subject: Subject, conflicts: Sequence[Conflict], classes: Sequence[str]
) -> tuple[dict[int, list[Answer]], list[Conflict]]:
    """Return the model's answer to each readable image, by length, and these images."""
    templates = class_templates(str(subject.cue_conflict)) or DEFAULT_TEMPLATES
    prompts = [fill_templates(templates, [name.replace("_", " ")]) for name in classes]
    class_z = class_embeddings(
        partial(embed_texts, subject.loaded, batch_size=subject.batch_size, device=subject.device), prompts
    )
    given: dict[int, list[Answer]] = {length: [] for length in subject.lengths}
    kept = []
    for start in range(0, len(conflicts), subject.batch_size):
        part, images = _read(subject, conflicts[start : start + subject.batch_size])
        kept += part
        for length in subject.lengths if part else ():
            with torch.no_grad():
                scores = (unit_rows(subject.model.encode_image(images, seqhw=length)) @ class_z.T).cpu()
            given[length] += [_answer(row, conflict, classes) for row, conflict in zip(scores, part, strict=True)]
    if not kept:
        raise UserError(f"--cue-conflict {subject.cue_conflict}: none of its {len(conflicts)} images can be read")
    return given, kept


def _answer(scores: Tensor, conflict: Conflict, classes: Sequence[str]) -> Answer:
    shape, texture = (scores[classes.index(cue)] for cue in (conflict.shape, conflict.texture))
    return Answer(classes[int(scores.argmax())], bool(shape > texture))


def _read(subject: Subject, conflicts: Sequence[Conflict]) -> tuple[list[Conflict], Tensor]:
    to_tensor = getattr(subject.loaded.transform, "pixels", subject.loaded.transform)

    def read(conflict: Conflict) -> Tensor | None:
        try:
            tensor: Tensor = to_tensor(read_image(str(subject.cue_conflict), conflict.path))
        except BadSample:
            return None
        return tensor

    with ThreadPoolExecutor(subject.workers) as pool:
        images = list(pool.map(read, conflicts))
    kept = [(conflict, image) for conflict, image in zip(conflicts, images, strict=True) if image is not None]
    if not kept:
        return [], torch.empty(0)
    batch = to_device(subject.loaded, torch.stack([image for _, image in kept]), subject.device)
    return [conflict for conflict, _ in kept], batch


def analyse(subject: Subject) -> Finding:
    """Compute the bias at every length. Raises UserError for a model without a text tower, or a folder with another layout."""
    if subject.cue_conflict is None:
        raise UserError(f"cue-conflict: {MEND}")
    if not has_text(subject.loaded):
        raise UserError("cue-conflict needs the model's text half to name what it sees, and the model is an image tower alone")
    conflicts = read_conflicts(subject.cue_conflict)
    classes = sorted({name for conflict in conflicts for name in (conflict.shape, conflict.texture)})
    given, kept = answers(subject, conflicts, classes)
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
            "folder": str(subject.cue_conflict),
            "unreadable": len(conflicts) - len(kept),
            "classes": classes,
            "lengths": {str(length): asdict(bias) for length, bias in found.items()},
        },
        table=Table(
            ("seqhw", "shape bias", "answers: shape", "answers: texture", "shape, of the two alone"),
            [(str(n), _percent(b.bias), f"{b.shape:.1%}", f"{b.texture:.1%}", f"{b.nearer:.1%}") for n, b in found.items()],
        ),
        figures={"cue_conflict": figures.cue_conflict(found)},
        captions={"cue_conflict": "0.5: shape and texture name as many images."},
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
