"""Models written as folders of CLIPModel or SiglipModel: transformers computes and prepares images as the model folder does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.exports import IMAGES, PHOTO, assert_model_refused, assert_same_features, export_model, tokens_of
from kit.weights import CAPTIONS, images, imported
from test_transformers_reader import clip, features, saved, siglip
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from flexiclip import load_model
from flexiclip.formats.transformers_writer import write
from flexiclip.model_folder import LoadedModel


@pytest.mark.parametrize(("name", "kind"), [("clip", transformers.CLIPModel), ("siglip", transformers.SiglipModel)])
@torch.no_grad()
def test_export_to_transformers_gives_the_same_features(
    name: str, kind: type, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert export_model(folders[name], "transformers", tmp_path / "m", "--seqhw", "8") == 0
    theirs = kind.from_pretrained(tmp_path / "m").eval()  # type: ignore[attr-defined]
    ours, tokens = opened[name].model, tokens_of(opened[name])
    found = theirs(pixel_values=IMAGES[:3], input_ids=tokens)
    assert_same_features(found.image_embeds, ours.encode_image(IMAGES[:3], 8, normalize=True))
    assert_same_features(found.text_embeds, ours.encode_text(tokens, normalize=True))
    logits = ours.logit_scale.exp() * ours.encode_text(tokens, True) @ ours.encode_image(IMAGES[:3], 8, True).T
    assert_same_features(found.logits_per_text, logits if ours.logit_bias is None else logits + ours.logit_bias)
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")(PHOTO, return_tensors="pt")["pixel_values"]
    assert float((pixels[0] - opened[name].transform(PHOTO)).abs().max()) < 0.04, "its resize may round to other grey levels"


@torch.no_grad()
def test_transformers_gets_a_patch_bias_before_a_norm_and_unequal_mean_and_std(biased: Path, tmp_path: Path) -> None:
    assert export_model(biased, "transformers", tmp_path / "m", "--seqhw", "4") == 0
    loaded = load_model(biased)
    assert loaded.model.image_tower.bias is not None
    assert float(loaded.model.image_tower.bias.abs().max()) > 0.1
    found = transformers.CLIPModel.from_pretrained(tmp_path / "m").eval().get_image_features(IMAGES)
    assert_same_features(features(found), loaded.model.encode_image(IMAGES, 4))
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")(PHOTO, return_tensors="pt")["pixel_values"][0]
    assert float((pixels - loaded.transform(PHOTO)).abs().max()) < 0.04, "its resize may round to other grey levels"


@pytest.mark.parametrize("build", [clip, siglip], ids=["clip", "siglip"])
@torch.no_grad()
def test_transformers_in_and_out_with_its_tokenizer(build: Callable[[], Any], tmp_path: Path) -> None:
    """Position 0 of CLIP becomes part of the class token, so there the features are compared and not every tensor."""
    theirs = saved(build(), tmp_path / "hf")
    loaded = imported(tmp_path / "hf", "transformers", tmp_path / "m")
    (tmp_path / "out").mkdir()
    written = write(loaded, None, tmp_path / "out")
    assert written.notes == ()
    assert f'transformers.{type(theirs).__name__}.from_pretrained("out")' in written.usage
    back = type(theirs).from_pretrained(tmp_path / "out").eval()
    tokenize = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenize(CAPTIONS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    assert torch.equal(tokens, loaded.tokenizer(CAPTIONS))
    expected = (features(theirs.get_image_features(images(48))), features(theirs.get_text_features(tokens)))
    again = (features(back.get_image_features(images(48))), features(back.get_text_features(tokens)))
    assert written.encode_image is not None
    assert written.encode_text is not None
    encoded = (written.encode_image(images(48)), written.encode_text(tokens))
    for want, found, ours in zip(expected, again, encoded, strict=True):
        assert_same_features(found, want)
        assert torch.equal(ours, found)
    if build is siglip:
        state = back.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("ours", {}, "pools by gap, not by a class token (CLIPModel is the nearest)"),
        ("clip", {"image": {"pre_norm": False}}, "no norm before the blocks"),
        ("clip", {"image": {"projection_bias": True}}, "projections have a bias"),
        ("clip", {"image": {"image_size": (48, 24), "default_seqhw": None}}, "are not square"),
        ("clip", {"text": {"projection_bias": True}}, "projections have a bias"),
        ("clip", {"text": {"causal": False}}, "is not causal"),
        ("clip", {"text": {"pool": "last"}}, "model.text.pool=last, not eos"),
        ("clip", {"logit_bias_init": -10.0}, "logit_bias"),
        ("siglip", {"image": {"projection": "linear"}}, "has a projection"),
        ("siglip", {"image": {"pre_norm": True}}, "has a norm before the blocks"),
        ("siglip", {"text": {"causal": True}}, "text tower is causal"),
        ("siglip", {"text": {"pad_mask": True}}, "hides padding"),
        ("siglip", {"text": {"pool": "mean"}}, "model.text.pool=mean, not last"),
    ],
)
def test_write_transformers_refuses_what_it_cannot_express(
    name: str,
    changes: dict[str, Any],
    reason: str,
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_model_refused(make(name, **changes), "transformers", reason, tmp_path / "m.npz", capsys)


def test_write_transformers_refuses_an_eos_of_2(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers takes it for the mark of an old model, and then pools CLIP's texts at the largest id."""
    engine = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "<eos>": 2, "fox": 3}, unk_token="<unk>"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **names).save_pretrained(tmp_path / "words")
    folder = make("clip", tokenizer={"kind": "huggingface", "path": str(tmp_path / "words"), "context_length": 12})
    assert_model_refused(folder, "transformers", "its EOS is 2", tmp_path / "out" / "m", capsys)
