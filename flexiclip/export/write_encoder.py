"""`flexiclip export image|text`: write an encoder, compare it with the model, and put it in place together with a card.

The encoder is written into a temporary folder first. Each function returns the files and what was measured, and raises
Disagreement with the figures if the result does not agree with the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from flexiclip.config.schema import Size
from flexiclip.errors import UserError
from flexiclip.export import onnx, program
from flexiclip.export.agreement import EXACT, INT8, Case, agreed, check, image_cases, image_inputs, measure, text_cases
from flexiclip.export.card import Exported, model_card
from flexiclip.export.encoder_facts import EncoderFacts, Origin, tokenizer_folder
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.files import folder_aside, replace_folder, size_text
from flexiclip.model_folder import LoadedModel

_WRITERS: dict[str, Callable[[nn.Module, Path, EncoderFacts], None]] = {"onnx": onnx.write, "torch": program.save}
_READERS: dict[str, Callable[[Path], onnx.Encode]] = {"onnx": onnx.open_encoder, "torch": program.open_encoder}
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_USAGE = {
    "onnx": 'onnxruntime.InferenceSession("{file}").run(None, {{"{name}": {name}}})',
    "torch": 'torch.export.load("{file}").module()({name})',
}


@dataclass(frozen=True)
class EncoderOptions:
    """The options of a single encoder's export.

    `seqhw` lists the lengths of an image encoder; the default is the model's own length.
    """

    format: str = "onnx"  # onnx | torch
    seqhw: Sequence[int] = ()
    quantize: str | None = None  # int8
    normalize_inside: bool = False  # an image encoder takes uint8 pixels and normalises them
    images: str | None = None  # a folder or shards to compare on

    def __post_init__(self) -> None:
        if self.format not in _WRITERS:
            raise UserError(f"--format {self.format}: an encoder is written as one of {', '.join(_WRITERS)}")
        if self.quantize not in (None, "int8"):
            raise UserError(f"--quantize {self.quantize}: only int8 is known")
        if self.quantize and self.format != "onnx":
            raise UserError(f"--quantize {self.quantize} is done by onnxruntime: give --format onnx")


def export_image(model: str, output: Path, options: EncoderOptions) -> Exported:
    """Write the image encoder of a model folder, one file per length.

    The files are OUTPUT for one length, and OUTPUT-5, OUTPUT-8, ... for several; in a folder they are named image. Raises
    UserError for a length that does not divide the image, before any file is written.
    """
    output = _file_of(output, "image", options.format)
    origin = Origin.open(model)
    loaded = origin.loaded
    tower = loaded.model.image_tower
    lengths: list[Size] = list(dict.fromkeys(options.seqhw)) or [tower.default_seqhw()]
    for seqhw in lengths:
        tower.grid_of(tower.image_size, seqhw)  # check every length before the first file is written
    pixels = image_inputs(loaded, options.images)
    files: list[Path] = []
    lines: list[str] = []
    for seqhw in lengths:
        path = output if len(lengths) == 1 else output.with_name(f"{output.stem}-{seqhw}{output.suffix}")
        cases = image_cases(loaded, seqhw, options.images)
        if options.normalize_inside:
            cases = [replace(case, x=pixels[case.inputs]) for case in cases]
        encoder = ImageEncoder(loaded.model, seqhw, loaded.transform.preprocess if options.normalize_inside else None)
        height, width = tower.image_size
        kind = "uint8 pixels" if options.normalize_inside else "normalised float32"
        what = f"image encoder at seqhw {seqhw}, input {kind} [B, 3, {height}, {width}]"
        lines += _export(origin, encoder, cases, path, options, what)
        files.append(path)
    return Exported(tuple(files), tuple(lines))


def export_text(model: str, output: Path, options: EncoderOptions) -> Exported:
    """Write the text encoder of a model folder, and the files of its tokenizer.

    The tokenizer's folder is next to OUTPUT and named after it (`tokenizer_folder`). In a folder, the file is named text.
    """
    output = _file_of(output, "text", options.format)
    origin = Origin.open(model)
    loaded = origin.loaded
    encoder = TextEncoder(loaded.model)
    cases = text_cases(loaded)
    if encoder.dynamic_length:
        cases += [_shorter(loaded, case) for case in cases]
    length = f"1 to {encoder.context_length}" if encoder.dynamic_length else f"exactly {encoder.context_length}"
    what = f"text encoder, input int64 tokens [B, L], L {length}"
    lines = _export(origin, encoder, cases, output, options, what)
    folder = output.with_name(tokenizer_folder(output.stem))
    with folder_aside(folder) as aside:
        loaded.tokenizer.save(aside / folder.name)
        replace_folder(aside / folder.name, folder)
    written = f"wrote {folder}: the tokenizer's files ({loaded.config.tokenizer.kind})"
    return Exported((output, folder), (*lines, written))


def _file_of(output: Path, name: str, format: str) -> Path:
    """Return the file to write: `output`, or NAME with the format's suffix in it if it is a folder or has no suffix.

    Raises UserError for another suffix, because the software that reads the files looks for this one.
    """
    suffix = _SUFFIXES[format]
    if os.path.isdir(output) or not output.suffix:  # Path.is_dir may raise an error
        return output / f"{name}{suffix}"
    if output.suffix != suffix:
        raise UserError(f"--output {output}: a file of --format {format} ends in {suffix}; name one, or a folder")
    return output


@torch.no_grad()
def _shorter(loaded: LoadedModel, case: Case) -> Case:
    """Return the left half of the tokens. It would need another graph than the full length if the length were not open."""
    tokens = case.x[:, : max(1, case.x.shape[1] // 2)]
    return Case(f"{case.inputs}, cut", tokens, loaded.model.encode_text(tokens, normalize=True))


def _export(
    origin: Origin, encoder: ImageEncoder | TextEncoder, cases: list[Case], path: Path, options: EncoderOptions, what: str
) -> list[str]:
    """Write and check one encoder in a temporary folder; the file and its card appear together or not at all."""
    with folder_aside(path) as folder:
        file = folder / f"whole{path.suffix}"
        _WRITERS[options.format](encoder, file, origin.facts(encoder, options.quantize))
        account = [str(one) for one in check(str(path), _READERS[options.format](file), cases, EXACT)]
        if options.quantize:
            quantized = folder / f"int8{path.suffix}"
            account += _quantize(file, quantized, cases, str(path))
            file = quantized
        account = [f"{path.name}: {what}, {size_text(file.stat().st_size)}", *account]
        usage = "`" + _USAGE[options.format].format(file=path.name, name=program.input_name(encoder)) + "`"
        card = folder / "card.md"
        card.write_text(model_card(origin, path.name, usage, account), encoding="utf-8")
        os.replace(card, path.with_suffix(".md"))
        os.replace(file, path)
    return account


def _quantize(whole: Path, quantized: Path, cases: list[Case], what: str) -> list[str]:
    """Quantise the encoder, and report the cosines and the gain in speed and size, one line per item.

    If the embeddings differ too much, the second layers of the MLPs stay float32.
    """
    onnx.quantize(whole, quantized)
    scope = "all blocks"
    if not agreed(measure(onnx.open_encoder(quantized), cases), INT8):
        onnx.quantize(whole, quantized, onnx.narrowing_layers(whole))
        scope = "the MLPs' second layers stay float32"
    first, second = onnx.open_encoder(whole), onnx.open_encoder(quantized)
    found = check(what, second, cases, INT8)
    faster = onnx.speed_ratio(first, second, cases[-1].x)
    smaller = whole.stat().st_size / quantized.stat().st_size
    gain = f"int8 ({scope}) is {faster:.2f} times as fast as float32 and {smaller:.1f} times smaller"
    return [*(f"int8, {one}" for one in found), gain]
