"""The commands of `flexiclip export`: what each option reaches, the model that they export from, and their exit codes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.exports import assert_refused, assert_same_embeddings, pixels, run_onnx, session

from flexiclip import load_model
from flexiclip.__main__ import main
from flexiclip.export import write_encoder, write_model
from flexiclip.export.agreement import EXACT, Agreement, Disagreement
from flexiclip.export.card import Exported
from flexiclip.export.write_encoder import EncoderOptions


def test_export_commands_hand_every_option_on(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[Any, ...]] = []

    def note(*arguments: Any) -> Exported:
        given.append(arguments)
        return Exported((Path("o"),), ("one line", "another"))

    monkeypatch.setattr(write_encoder, "export_image", note)
    monkeypatch.setattr(write_encoder, "export_text", note)
    monkeypatch.setattr(write_model, "export_model", note)
    folder = str(folders["ours"])
    for command in (
        "image --output o",
        "image --output o --format torch --seqhw 3,6 --images i --normalize-inside",
        "image --output o --quantize int8",
        "text --output o",
        "text --output o --format torch",
        "text --output o --quantize int8",
        "model --output o --format timm",
        "model --output o --format open_clip --seqhw 4 --images i",
    ):
        what, *options = command.split()
        assert main(["export", what, folder, *options]) == 0
        assert capsys.readouterr().out == "one line\nanother\n"
    o = Path("o")
    assert given == [
        (folder, o, EncoderOptions("onnx", [], None, False, None)),
        (folder, o, EncoderOptions("torch", [3, 6], None, True, "i")),
        (folder, o, EncoderOptions("onnx", [], "int8", False, None)),
        (folder, o, EncoderOptions("onnx")),
        (folder, o, EncoderOptions("torch")),
        (folder, o, EncoderOptions("onnx", quantize="int8")),
        (folder, o, "timm", None, None, None),
        (folder, o, "open_clip", 4, "i", None),
    ]


def test_a_disagreement_is_printed_and_the_exit_code_is_1(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disagree(*_: Any) -> list[str]:
        raise Disagreement("o.onnx", [Agreement("random images", 8, 0.5, 0.75)], EXACT)

    monkeypatch.setattr(write_encoder, "export_text", disagree)
    assert main(["export", "text", str(folders["ours"]), "--output", "o.onnx"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("o.onnx is not the model, and was not kept: 8 random images: largest difference 5.0e-01")
    assert (out.count("\n"), err) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["image", "nowhere"],
            "nowhere is not a model: there is no such file or folder; give a model folder or a run folder, open_clip:",
        ),
        (["model", "MODEL", "--format", "timm", "--seqhw", "2,3"], "--seqhw 2,3: one model has one length"),
        (["model", "MODEL", "--format", "timm", "--seqhw", "two"], "'two' is not a list of grid sides"),
        (["model", "MODEL"], "--format"),
    ],
)
def test_export_names_mistakes_in_one_line(
    arguments: list[str], message: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folders["siglip"]) if part == "MODEL" else part for part in arguments]
    assert_refused(given, message, tmp_path / "out", capsys)


@torch.no_grad()
def test_a_model_that_open_clip_names(make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_clip:NAME` is imported for as long as the export takes; local-dir is open_clip's own way to name a folder."""
    ours, folder = make("clip", tokenizer={"kind": "clip", "context_length": 12}), tmp_path / "theirs"
    path, temporary = tmp_path / "image.onnx", tmp_path / "temporary"
    assert main(["export", "model", str(ours), "--format", "open_clip", "--output", str(folder)]) == 0
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert main(["export", "image", f"open_clip:local-dir:{folder}", "--output", str(path)]) == 0
    assert list(temporary.iterdir()) == [], "what was imported is gone"
    images = pixels(2) / 127.5 - 1
    assert_same_embeddings(run_onnx(path, images), load_model(ours).model.encode_image(images, 6, normalize=True))
    assert json.loads(session(path).get_modelmeta().custom_metadata_map["flexiclip"])["source"] == "theirs"
