"""`flexiclip export ...`: the commands that write encoders and models for other software."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flexiclip.cli.parser import Command, Parser, add_command, add_group, lengths
from flexiclip.commands import folder_to_export
from flexiclip.errors import UserError

if TYPE_CHECKING:
    from flexiclip.export.card import Exported


def add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command `export` and its subcommands."""
    export = add_group(commands, "export", "write encoders and models that other software runs", "WHAT")
    for name, command, text in (
        ("image", _image, "write the image encoder, one file per length"),
        ("text", _text, "write the text encoder"),
        ("model", _model, "write the whole model in another library's format"),
    ):
        sub = add_command(export, name, _command(command), text)
        sub.add_argument("model", help="a model folder, a run folder, or open_clip:NAME/PRETRAINED")
        place = (
            "a new folder, or for big_vision a .npz file"
            if name == "model"
            else f"the file to write, or a folder for {name}.onnx"
        )
        sub.add_argument("--output", type=Path, required=True, help=place)
        if name == "model":
            sub.add_argument("--format", required=True, help="open_clip, timm, big_vision or transformers")
            sub.add_argument(
                "--hub",
                metavar="ORG/REPO",
                help="for open_clip: the repository to which the folder will be uploaded; it then needs no path",
            )
        else:
            sub.add_argument("--format", default="onnx", help="onnx or torch; default: onnx")
            sub.add_argument(
                "--quantize", help="int8: quantize the weights of the blocks, for onnx only; prints what that costs and gains"
            )
        if name != "text":
            sides = "grid sides, for example 5,8,15" if name == "image" else "grid side, for example 15"
            sub.add_argument("--seqhw", type=lengths, default=[], help=f"{sides}; default: the model's own")
            sub.add_argument(
                "--images", help="folder or shards of images on which export and model are compared; default: drawn pictures"
            )
        if name == "image":
            sub.add_argument(
                "--normalize-inside", action="store_true", help="let the encoder take uint8 pixels and normalise them itself"
            )


def _command(export: Callable[[str, argparse.Namespace], Exported]) -> Command:
    """Return a command that exports and prints what was done. Its exit code is 1 if the export and the model disagree."""

    def run(arguments: argparse.Namespace) -> int:
        from flexiclip.export.agreement import Disagreement

        try:
            with folder_to_export(arguments.model) as model:
                print(export(model, arguments))
        except Disagreement as error:
            print(error)
            return 1
        return 0

    return run


def _image(model: str, arguments: argparse.Namespace) -> Exported:
    from flexiclip.export.write_encoder import EncoderOptions, export_image

    options = EncoderOptions(arguments.format, arguments.seqhw, arguments.quantize, arguments.normalize_inside, arguments.images)
    return export_image(model, arguments.output, options)


def _text(model: str, arguments: argparse.Namespace) -> Exported:
    from flexiclip.export.write_encoder import EncoderOptions, export_text

    return export_text(model, arguments.output, EncoderOptions(arguments.format, quantize=arguments.quantize))


def _model(model: str, arguments: argparse.Namespace) -> Exported:
    from flexiclip.export.write_model import export_model

    if len(arguments.seqhw) > 1:
        raise UserError(f"--seqhw {','.join(map(str, arguments.seqhw))}: one model has one length; export it once a length")
    seqhw = arguments.seqhw[0] if arguments.seqhw else None
    return export_model(model, arguments.output, arguments.format, seqhw, arguments.images, arguments.hub)
