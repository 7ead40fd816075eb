"""Models that are not ours, and fixed ones at other lengths: each against the library that it comes from.

The ways of resizing a fixed kernel that PI-resize is compared with: each against its own formula.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from flexiclip_eval import evaluate_suites
from flexiclip_eval.embeddings.store import model_fingerprint
from flexiclip_eval.models.flex import FLEXES
from flexiclip_eval.models.protocol import ForeignModel, choose_lengths, trained_lengths
from flexiclip_eval.models.sources import fixed, open_model
from kit.evaluation import toy_model, toys, write_shards, write_suite
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from flexiclip import model_source
from flexiclip.config import PatchStage, parse_duration
from flexiclip.errors import UserError
from flexiclip.model_folder import save_model


def _image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def _fixed_timm(folder: Path) -> nn.Module:
    """A ViT of 32-pixel images and patches of 8, class token and all, saved as timm saves it for a hub."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0).eval()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    return model


def _at_patch(model: nn.Module, kernel: Tensor, side: int) -> nn.Module:
    """timm's own model of that patch size: the kernel is handed in, the grid resampled by torch (bilinear, antialias)."""
    state = dict(model.state_dict())
    cls, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    old = round(grid.shape[1] ** 0.5)
    square = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(square, size=(32 // side, 32 // side), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    state |= {"pos_embed": torch.cat([cls, grid], 1), "patch_embed.proj.weight": kernel}
    other = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=side, num_classes=0).eval()
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("side", [4, 16])
def test_a_timm_tower_is_flexed_as_timm_would_and_as_torch_would(side: int, tmp_path: Path) -> None:
    source = str(tmp_path / "tower")
    model = _fixed_timm(tmp_path / "tower")
    kernel = model.state_dict()["patch_embed.proj.weight"]
    by_pi = resample_patch_embed(kernel, [side, side], interpolation="bilinear", antialias=False)
    plainly = F.interpolate(kernel, size=(side, side), mode="bilinear", antialias=False)
    found = {}
    for flex, wanted in (("pi", by_pi), ("bilinear", plainly)):
        loaded = open_model(f"{source}+{flex}", "cpu")
        x = loaded.transform(_image())[None]
        with torch.no_grad():
            expected = _at_patch(model, wanted, side)(x)
            found[flex] = loaded.model.encode_image(x, seqhw=32 // side)
            own = loaded.model.encode_image(x, seqhw=4)
            torch.testing.assert_close(own, model(x), rtol=0, atol=2e-5 * float(own.abs().max()))
        torch.testing.assert_close(found[flex], expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    assert (found["pi"] - found["bilinear"]).abs().max() > 0.01
    fixed = open_model(source, "cpu")
    assert choose_lengths(fixed, None) == [4]
    with pytest.raises(UserError, match=r"one fixed length, seqhw=4; .*MODEL\+pi"):
        choose_lengths(fixed, [8])
    assert choose_lengths(open_model(f"{source}+pi", "cpu"), None) == [4, 8, 16]


def test_a_transformers_folder_gives_what_transformers_gives(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 49_408, "eos_token_id": 49_407, "max_position_embeddings": 16},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "clip")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "clip")
    engine = SimpleTokenizer(context_length=16)
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary.write_text(json.dumps({named.get(word, word): number for word, number in engine.encoder.items()}))
    merges.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in engine.bpe_ranks))
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), pad_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "clip")
    loaded = open_model(str(tmp_path / "clip"), "cpu")
    texts = ["a red square", "something else entirely"]
    with torch.no_grad():
        pixels = processor(_image(), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(loaded.transform(_image())[None], pixels, rtol=0, atol=0.02)  # a grey level
        image = theirs.get_image_features(pixel_values=pixels)
        image = getattr(image, "pooler_output", image)
        ours = loaded.model.encode_image(pixels, seqhw=4)
        torch.testing.assert_close(ours, image, rtol=0, atol=2e-5 * float(image.abs().max()))
        tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
        assert torch.equal(loaded.tokenizer(texts), tokens)
        text = theirs.get_text_features(input_ids=tokens)
        text = getattr(text, "pooler_output", text)
        torch.testing.assert_close(loaded.model.encode_text(tokens), text, rtol=0, atol=2e-5 * float(text.abs().max()))
    assert isinstance(loaded, ForeignModel)
    (own,) = loaded.lengths.items()
    assert (own[0], own[1].patch_size, own[1].image_size) == (4, 8, 32)


def test_our_own_fixed_model_is_flexed_by_name_and_compared_in_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    save_model(folder, toy_model(tmp_path))
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))
    sources = [str(folder), f"{folder}+pi", f"{folder}+bilinear"]
    rows = evaluate_suites(sources, [suite], seqhw=[3, 6])
    assert [(row.pretrained, row.seqhw) for row in rows[::4]] == [(source, 3) for source in sources]
    assert len(rows) == 12
    by_source = {source: [row.metrics for row in rows if row.pretrained == source] for source in sources}
    assert by_source[sources[0]] == by_source[sources[1]]
    plain, flexed = (open_model(source, "cpu") for source in (sources[0], sources[2]))
    x = plain.transform(_image())[None]
    with torch.no_grad():
        assert torch.equal(plain.model.encode_image(x, seqhw=3), flexed.model.encode_image(x, seqhw=3))  # the kernel's own size
        assert not torch.allclose(plain.model.encode_image(x, seqhw=6), flexed.model.encode_image(x, seqhw=6), atol=1e-3)
    with pytest.raises(UserError, match="is named twice"):
        evaluate_suites([str(folder), f"{folder}/"], [suite])


def test_a_model_of_one_trained_length_is_flexed_from_the_kernel_it_has_there(tmp_path: Path) -> None:
    """Base kernel 8, trained at patches of 12: at 12 nothing changes, elsewhere that kernel is resized, never the base one."""
    loaded = toy_model(tmp_path)
    config = replace(loaded.config, patch=replace(loaded.config.patch, seqhw=(2,)))
    save_model(tmp_path / "fixed", replace(loaded, config=config))
    tower, x = loaded.model.image_tower, loaded.transform(_image())[None]
    own = tower.resize_kernel(tower.kernel.detach(), (12, 12))
    expected = {
        "pi": resample_patch_embed(own, [4, 4], interpolation="bilinear", antialias=False),
        "bilinear": F.interpolate(own, size=(4, 4), mode="bilinear", antialias=False),
    }
    for flex, kernel in expected.items():
        flexed = open_model(f"{tmp_path / 'fixed'}+{flex}", "cpu").model
        with torch.no_grad():
            assert torch.equal(flexed.encode_image(x, seqhw=2), loaded.model.encode_image(x, seqhw=2))
            found = flexed.image_tower.resize_kernel(flexed.image_tower.kernel, (4, 4))
        assert (found - kernel).abs().max() < 1e-5 * kernel.abs().max()


def test_a_model_that_stages_trained_at_several_lengths_keeps_its_base_kernel_and_its_lengths(tmp_path: Path) -> None:
    """patch.seqhw names one length, 12 pixels, and a stage two more: MODEL+pi is MODEL, and all three are scored by default."""
    loaded = toy_model(tmp_path)
    stages = (PatchStage(parse_duration("50%"), (3, 6)),)
    config = replace(loaded.config, patch=replace(loaded.config.patch, seqhw=(2,), stages=stages))
    save_model(tmp_path / "staged", replace(loaded, config=config))
    flexed, plain = open_model(f"{tmp_path / 'staged'}+pi", "cpu"), open_model(str(tmp_path / "staged"), "cpu")
    assert torch.equal(flexed.model.image_tower.kernel, loaded.model.image_tower.kernel)
    assert choose_lengths(plain, None) == [2, 3, 6]
    assert trained_lengths(plain) == trained_lengths(flexed) == (2, 3, 6)
    assert choose_lengths(flexed, None) == [2, 3, 6, 8, 12, 24], "beside the grids from 5 to 30"
    unused = replace(config.patch, seqhw=(2, 3, 6), weights=(1.0, 0.0, 1.0), stages=())
    never = replace(plain, config=replace(config, patch=unused))
    assert choose_lengths(never, None) == [2, 6], "a length of weight 0 was never trained"
    assert choose_lengths(never, [3]) == [3]
    assert fixed(plain) is plain, "not held to one length"
    held = fixed(replace(plain, config=replace(config, patch=replace(unused, weights=(0.0, 1.0, 0.0)))))
    assert isinstance(held, ForeignModel)
    assert held.default == (3,)


def test_an_image_tower_alone_is_refused_where_text_is_needed(tmp_path: Path) -> None:
    _fixed_timm(tmp_path / "tower")
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))
    with pytest.raises(UserError, match=r"image tower alone .* need its text half .classification, retrieval."):
        evaluate_suites([str(tmp_path / "tower")], [suite])


def test_flexes_have_the_endings_of_the_grammar() -> None:
    assert tuple(FLEXES) == model_source.FLEXES


def test_sources_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "odd+pi").mkdir()
    for source in (str(tmp_path / "nowhere"), str(tmp_path / "odd+pi"), f"{tmp_path}/nowhere+bilinear"):
        with pytest.raises(UserError, match=r"is not a model: .*; give a model folder or a run folder, open_clip:NAME"):
            open_model(source, "cpu")
    with pytest.raises(UserError, match="name the weights too"):
        open_model("open_clip:ViT-B-32+pi", "cpu")


def _area(kernel: np.ndarray, side: int) -> np.ndarray:
    bilinear = F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bilinear").numpy()
    return bilinear * kernel.shape[2] * kernel.shape[3] / side**2


def _norm(kernel: np.ndarray, side: int) -> np.ndarray:
    bilinear = F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bilinear").numpy()
    before, after = ([np.sqrt((each.astype(np.float64) ** 2).sum()) for each in filters] for filters in (kernel, bilinear))
    return np.stack([each * old / new for each, old, new in zip(bilinear, before, after, strict=True)])


FORMULAS = {
    "bilinear": lambda kernel, side: F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bilinear").numpy(),
    "bicubic": lambda kernel, side: F.interpolate(torch.from_numpy(kernel), size=(side, side), mode="bicubic").numpy(),
    "area": _area,
    "norm": _norm,
}


@pytest.fixture(scope="module")
def flexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ForeignModel]:
    """The toy model under every suffix: kernels of 8 pixels, images of 24."""
    folder = tmp_path_factory.mktemp("flexed")
    save_model(folder / "fixed", toy_model(folder))
    opened = {flex: open_model(f"{folder / 'fixed'}+{flex}", "cpu") for flex in FLEXES}
    assert all(isinstance(model, ForeignModel) for model in opened.values())
    return opened  # type: ignore[return-value]


@pytest.mark.parametrize("side", [4, 12, 24])
@pytest.mark.parametrize("flex", FORMULAS)
def test_a_kernel_is_resized_by_its_formula(flex: str, side: int, flexed: dict[str, ForeignModel]) -> None:
    tower = flexed[flex].model.image_tower
    kernel = tower.kernel.detach()
    with torch.no_grad():
        found = tower.resize_kernel(kernel, (side, side)).numpy()
        assert torch.allclose(tower.resize_kernel(kernel, (8, 8)), kernel, rtol=0, atol=1e-6)  # its own size
    np.testing.assert_allclose(found, FORMULAS[flex](kernel.numpy(), side), rtol=0, atol=2e-6)


def test_an_even_patch_keeps_its_embedding_under_area_alone(flexed: dict[str, ForeignModel]) -> None:
    """Enlarging threefold with half-pixel centres, every old pixel but those at the rim has the weight of nine new ones."""
    kernel = torch.zeros(16, 3, 8, 8)
    kernel[:, :, 2:6, 2:6] = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    even = {flex: flexed[flex].model.image_tower.resize_kernel(kernel, (24, 24)).sum((1, 2, 3)) for flex in ("area", "bilinear")}
    torch.testing.assert_close(even["area"], kernel.sum((1, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(even["bilinear"], 9 * kernel.sum((1, 2, 3)), rtol=0, atol=1e-4)


def test_kept_embeddings_of_one_way_are_never_taken_for_those_of_another(flexed: dict[str, ForeignModel]) -> None:
    assert len({model_fingerprint(model) for model in flexed.values()}) == len(FLEXES) == 5
