"""Hugging Face folders of CLIP and SigLIP through `flexiclip import`, against transformers' own features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.golden import largest_difference
from kit.weights import CAPTIONS, images, imported, perturbed, refused, vocabulary
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 48,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "vocab_size": 60,
    "max_position_embeddings": 12,
}
EOS = 59


def clip(eos: int = EOS, **vision: Any) -> transformers.CLIPModel:
    text = TEXT | {"eos_token_id": eos}
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=VISION | vision, text_config=text, projection_dim=32))


def siglip() -> transformers.SiglipModel:
    text = TEXT | {"projection_size": 64}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=text))


def saved(model: Any, folder: Path, tokenizer: bool = True) -> Any:
    model = perturbed(model)
    model.save_pretrained(folder)
    if tokenizer:
        words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "blue": 4, "fox": 5, "owl": 6, "boat": 7, "<eos>": EOS}
        engine = Tokenizer(WordLevel(words, unk_token="<unk>"))
        engine.pre_tokenizer = Whitespace()
        engine.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS)])
        names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **names).save_pretrained(folder)
    return model


def features(output: Any) -> torch.Tensor:
    """transformers 5 wraps what transformers 4 returns bare."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@pytest.mark.parametrize("make", [clip, siglip], ids=["clip", "siglip"])
@torch.no_grad()
def test_import_of_both_towers_gives_transformers_features(make: Any, tmp_path: Path) -> None:
    theirs = saved(make(), tmp_path / "hf")
    size = {"height": 48, "width": 48} if make is siglip else {"shortest_edge": 48}
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.3], "resample": 2, "size": size}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(said))
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    ours = imported(tmp_path / "hf", "siglip", tmp_path / "m")
    tokens = ours.tokenizer(CAPTIONS)
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert torch.equal(tokens, own(CAPTIONS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"])
    assert largest_difference(ours.model.encode_image(images(48)), features(theirs.get_image_features(images(48)))) < 1e-5
    assert largest_difference(ours.model.encode_text(tokens), features(theirs.get_text_features(tokens))) < 1e-5
    assert float(ours.model.logit_scale) == float(theirs.logit_scale)
    assert (ours.model.logit_bias is not None) == (make is siglip)
    preprocess = ours.config.model.preprocess
    assert (preprocess.mean, preprocess.std, preprocess.interpolation) == ((0.1, 0.2, 0.3), (0.5, 0.4, 0.3), "bilinear")
    assert preprocess.resize == ("squash" if make is siglip else "shortest")
    assert ours.provenance["license"] == "apache-2.0"
    assert ours.model.encode_image(images(48), 6).shape == features(theirs.get_image_features(images(48))).shape


@torch.no_grad()
def test_old_configs_pool_at_the_largest_id(tmp_path: Path) -> None:
    theirs = saved(clip(eos=2), tmp_path / "hf")
    ours = imported(tmp_path / "hf", "transformers", tmp_path / "m")
    tokens = ours.tokenizer(CAPTIONS)
    assert largest_difference(ours.model.encode_text(tokens), features(theirs.get_text_features(tokens))) < 1e-5


@torch.no_grad()
def test_siglip_with_its_sentencepiece_model(tmp_path: Path) -> None:
    theirs = saved(siglip(), tmp_path / "hf", tokenizer=False)
    ours = imported(tmp_path / "hf", "siglip", tmp_path / "m", "--text", vocabulary(tmp_path / "sp.model"))
    tokens = ours.tokenizer(CAPTIONS)
    assert set(tokens[:, -1].tolist()) == {ours.tokenizer.eos_id}
    assert largest_difference(ours.model.encode_text(tokens), features(theirs.get_text_features(tokens))) < 1e-5
    assert ours.config.model.preprocess.resize == "squash"


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@torch.no_grad()
def test_import_of_an_image_tower_alone(prefix: str, tmp_path: Path) -> None:
    theirs = saved(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)), tmp_path / "hf", tokenizer=False)
    path = tmp_path / "hf" / "model.safetensors"
    names = {f"{prefix}{name.removeprefix('vision_model.')}": tensor for name, tensor in load_file(path).items()}
    save_file(names, path, metadata={"format": "pt"})  # as transformers 5 and 4 name them
    ours = imported(tmp_path / "hf", "siglip", tmp_path / "m")
    assert largest_difference(ours.model.encode_image(images(48)), theirs(images(48)).pooler_output) < 1e-5
    assert ours.config.model.text is None


@torch.no_grad()
def test_a_size_that_the_patches_do_not_cover(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = saved(clip(image_size=50), tmp_path / "hf")
    ours = imported(tmp_path / "hf", "transformers", tmp_path / "m")
    assert "images of 48 px, what the patches cover; the folder says 50" in capsys.readouterr().out
    batch = images(50)
    assert largest_difference(ours.model.encode_image(batch[..., :48, :48]), features(theirs.get_image_features(batch))) < 1e-5


def test_import_reads_shards_of_weights_and_refuses_damaged_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, target = tmp_path / "hf", tmp_path / "m"
    saved(siglip(), folder)
    whole = imported(folder, "siglip", tmp_path / "whole").model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [dict(list(state.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        save_file(half, folder / f"part-{i}.safetensors")
    index = {"weight_map": {name: f"part-{i}.safetensors" for i, half in enumerate(halves) for name in half}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = imported(folder, "siglip", tmp_path / "sharded").model.state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in whole.items())

    save_file(state | {"stray": torch.ones(2)}, folder / "model.safetensors")
    assert "without a place in the tower: stray" in refused(capsys, folder, "siglip", target)
    lacking = {name: tensor for name, tensor in state.items() if name != "vision_model.head.probe"}
    save_file(lacking, folder / "model.safetensors")
    assert "'vision_model.head.probe' is missing" in refused(capsys, folder, "siglip", target)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    assert "NaFlex" in refused(capsys, folder, "siglip", target)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "a bert model; the kinds that can be imported are clip" in refused(capsys, folder, "siglip", target)
    (folder / "config.json").write_text("{")
    assert "not a JSON file" in refused(capsys, folder, "siglip", target)
    assert "nothing is not a model: there is no such file or folder; give a folder of transformers" in refused(
        capsys, tmp_path / "nothing", "siglip", target
    )


def test_a_folder_without_a_tokenizer_asks_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(siglip(), tmp_path / "hf", tokenizer=False)
    assert "--text FILE" in refused(capsys, tmp_path / "hf", "siglip", tmp_path / "m")
