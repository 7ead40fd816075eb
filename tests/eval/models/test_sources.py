"""Folders of open_clip and files of big_vision, by name and flexed: against open_clip, torch and big_vision's own outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from flexiclip_eval import evaluate_suites
from flexiclip_eval.models.protocol import ForeignModel, choose_lengths, has_text, model_names
from flexiclip_eval.models.sources import open_model
from kit.evaluation import toys, write_shards, write_suite
from timm.layers import resample_patch_embed
from torch import Tensor

from flexiclip.__main__ import main
from flexiclip.formats.open_clip_reader import import_open_clip
from flexiclip.formats.run import build_imported
from flexiclip.models.flops import image_flops, image_model_flops

GOLDEN = Path(__file__).parents[2] / "golden"
SIZE, PATCH = 48, 16
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)


def build(patch: int) -> Any:
    """open_clip's own model of that patch size; weights and biases off their first values."""
    vision = {"image_size": SIZE, "patch_size": patch, "layers": 2, "width": 64, "head_width": 32}
    model = open_clip.CustomTextCLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A folder that open_clip reads as local-dir, and its model."""
    folder, model = tmp_path_factory.mktemp("open_clip"), build(PATCH)
    vision = {"image_size": SIZE, "patch_size": PATCH, "layers": 2, "width": 64, "head_width": 32}
    settings = {"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT}
    said = {"model_cfg": settings, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return str(folder), model


@torch.no_grad()
def test_an_open_clip_folder_is_run_by_open_clip(theirs: tuple[str, Any], tmp_path: Path) -> None:
    source, model = theirs
    loaded = open_model(source, "cpu")
    assert isinstance(loaded, ForeignModel)
    transform = open_clip.image_transform(SIZE, is_train=False, mean=MEAN, std=STD)
    images = torch.stack([transform(toy.image) for toy in toys(4)])
    assert torch.equal(torch.stack([loaded.transform(toy.image) for toy in toys(4)]), images)
    torch.testing.assert_close(loaded.model.encode_image(images, seqhw=3), model.encode_image(images), rtol=0, atol=1e-6)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a thing", "another thing altogether"])
    assert torch.equal(loaded.tokenizer(["a thing", "another thing altogether"]), tokens)
    torch.testing.assert_close(loaded.model.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=1e-6)
    ((length, there),) = loaded.lengths.items()
    config = build_imported(import_open_clip(f"local-dir:{source}"), source).config.model
    assert (length, there.patch_size, there.image_size) == (3, PATCH, SIZE)
    ours = image_flops(config.image, 3)  # whose last block computes the class token alone
    whole = image_model_flops(config, 3) - ours.forward + ours.all_tokens().forward
    assert there.gflops == pytest.approx(whole / 1e9, rel=1e-6)
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(7), (7,)))
    rows = evaluate_suites([source], [suite])
    assert {(row.model, row.pretrained, row.seqhw, row.n) for row in rows} == {(source.rpartition("/")[2], source, 3, 7)}
    assert model_names(loaded, source) == (source.rpartition("/")[2], source)


def at_patch(model: Any, kernel: Tensor, side: int) -> Any:
    """open_clip's own model of another patch size: the kernel is handed in, the grid resampled by torch (bilinear, antialias)."""
    state = dict(model.state_dict())
    cls, grid = state["visual.positional_embedding"][:1], state["visual.positional_embedding"][1:]
    square = grid.reshape(1, SIZE // PATCH, SIZE // PATCH, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(square, size=(SIZE // side, SIZE // side), mode="bilinear", antialias=True)[0].flatten(1).T
    other = build(side)
    other.load_state_dict(state | {"visual.positional_embedding": torch.cat([cls, grid]), "visual.conv1.weight": kernel})
    return other


@pytest.mark.parametrize("side", [8, 12, 24])
@torch.no_grad()
def test_an_open_clip_model_is_flexed(side: int, theirs: tuple[str, Any]) -> None:
    source, model = theirs
    kernel = model.state_dict()["visual.conv1.weight"]
    kernels = {
        "pi": resample_patch_embed(kernel, [side, side], interpolation="bilinear", antialias=False),
        "bilinear": F.interpolate(kernel, size=(side, side), mode="bilinear", antialias=False),
    }
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a thing", "another thing altogether"])
    found = {}
    for flex, resized in kernels.items():
        loaded = open_model(f"{source}+{flex}", "cpu")
        images = torch.stack([loaded.transform(toy.image) for toy in toys(4)])
        expected = at_patch(model, resized, side).encode_image(images)
        found[flex] = loaded.model.encode_image(images, seqhw=SIZE // side)
        torch.testing.assert_close(found[flex], expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
        own = model.encode_image(images)
        torch.testing.assert_close(loaded.model.encode_image(images, seqhw=3), own, rtol=0, atol=5e-5 * float(own.abs().max()))
        torch.testing.assert_close(loaded.model.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=1e-5)
        assert choose_lengths(loaded, None) == [3, 6, 8, 12, 16, 24]
    assert (found["pi"] - found["bilinear"]).abs().max() > 1e-3 * found["pi"].abs().max()


@torch.no_grad()
def test_a_flexivit_of_big_vision_gives_what_big_vision_gave(tmp_path: Path) -> None:
    source = str(GOLDEN / "flexivit_gap_params.npz")
    loaded = open_model(source, "cpu")
    assert choose_lengths(loaded, None) == [5, 6, 8, 10, 12, 15, 16, 20, 24, 30]
    assert not has_text(loaded)
    with np.load(GOLDEN / "flexivit_input.npz") as file:
        images = torch.from_numpy(file["image"]).permute(0, 3, 1, 2)
    with np.load(GOLDEN / "flexivit_gap_outputs.npz") as file:
        for patch in (8, 15, 30, 48):
            expected = torch.from_numpy(file[f"p{patch}_logits"])
            found = loaded.model.encode_image(images, seqhw=240 // patch)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_big_vision_file_without_its_vocabulary_says_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(GOLDEN / "flexivit_map_params.npz") as image, np.load(GOLDEN / "text_params.npz") as text:
        towers = {f"img/{name}": array for name, array in image.items()} | {f"txt/{name}": array for name, array in text.items()}
    towers |= {"img/head/kernel": np.ones((64, 32), np.float32), "img/head/bias": np.zeros(32, np.float32)}
    np.savez(tmp_path / "two.npz", **towers, t=np.array([4.7], np.float32))  # type: ignore[arg-type]
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(7), (7,)))
    assert main(["eval", str(tmp_path / "two.npz"), "--suite", suite, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "give its sentencepiece model with --text FILE; that is an option of `flexiclip import`" in said
