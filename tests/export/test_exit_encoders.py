"""`flexiclip export image MODEL+exitN`: the encoder of a tower that is left early, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from flexiclip.__main__ import main
from flexiclip.config import Config, ImageTowerConfig, ModelConfig, PatchConfig, PatchStage, parse_duration
from flexiclip.model_folder import build_model, load_model, save_model

LENGTHS = PatchConfig(seqhw=(4, 2, 6), weights=(1.0, 1.0, 0.0), stages=(PatchStage(parse_duration("50%"), (3,)),))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = ImageTowerConfig(
        width=32, depth=3, heads=2, image_size=24, base_patch_size=8, base_grid=3, exits=(1, 2), exit_heads="separate"
    )
    config = Config(model=ModelConfig(image=image, text=None, embed_dim=8), patch=LENGTHS)
    loaded = build_model(config)
    with torch.no_grad():
        for p in loaded.model.parameters():  # the heads must differ from one another
            p.add_(0.3 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("exits") / "model"
    save_model(folder, loaded)
    (folder / "results.json").write_text(
        '[{"dataset": "d", "task": "t", "seqhw": 4, "pretrained": "exits", "metrics": {"acc1": 0.5}}]'
    )
    return folder


@torch.no_grad()
def test_an_exit_is_loaded_and_exported_as_what_it_is(source: Path, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    whole, left = load_model(source), load_model(f"{source}+exit2")
    expected = left.model.encode_image(images, 4, normalize=True)
    assert (len(left.model.image_tower.blocks), left.config.model.image.depth, left.config.model.image.exits) == (2, 2, ())
    assert not torch.allclose(expected, whole.model.encode_image(images, 4, normalize=True), atol=0.1)

    output = tmp_path / "image.onnx"
    command = ["export", "image", f"{source}+exit2", "--format", "onnx", "--seqhw", "4", "--output", str(output)]
    assert main(command) == 0
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)
    card = output.with_suffix(".md").read_text()
    assert "left after block: 2" in card
    assert "trained at seqhw: 2, 3, 4" in card
    facts = json.loads(session.get_modelmeta().custom_metadata_map["flexiclip"])
    assert facts["image"]["trained_seqhw"] == [2, 3, 4], "those of the stages too, and not the 6 that is never drawn"
    assert "0.5000" not in card, "the metrics beside the folder are those of the whole depth"


def test_a_saved_exit_is_a_model_of_its_own(source: Path, tmp_path: Path) -> None:
    left = load_model(f"{source}+exit1")
    save_model(tmp_path / "short", left)
    again = load_model(tmp_path / "short")
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(again.model.encode_image(images, 2), left.model.encode_image(images, 2))
    assert replace(again.config.model.image, init=None) == left.config.model.image


def test_a_block_without_an_exit_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "image", f"{source}+exit5", "--output", "image.onnx"]) == 2
    assert "cannot be left after block 5 of 3: its exits are 1, 2" in capsys.readouterr().err


def test_a_saved_exit_has_metrics_of_its_own(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    save_model(folder, load_model(f"{source}+exit1"))
    (folder / "results.json").write_text(
        '[{"dataset": "d", "task": "t", "seqhw": 4, "pretrained": "short", "metrics": {"acc1": 0.25}}]'
    )
    output = tmp_path / "image.onnx"
    assert main(["export", "image", str(folder), "--format", "onnx", "--seqhw", "4", "--output", str(output)]) == 0
    assert "0.2500" in output.with_suffix(".md").read_text()
