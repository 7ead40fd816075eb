"""The facts that an encoder carries: what they say of a model, their JSON there and back, and what is refused in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flexiclip import load_model
from flexiclip.config import PreprocessConfig, TokenizerConfig
from flexiclip.errors import UserError
from flexiclip.export.encoder_facts import (
    EncoderFacts,
    ImageFacts,
    Origin,
    TextFacts,
    facts_from_json,
    facts_to_json,
    tokenizer_folder,
)
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.model_folder import save_model
from flexiclip.models.flops import image_gflops

IMAGE = ImageFacts((48, 32), (6, 4), (8, 8), 0.5, PreprocessConfig(), False, (2, 3))
TEXT = TextFacts(TokenizerConfig(kind="clip", context_length=77), "ab", 49408, 0, 49407, True)
ABOUT_IMAGE = EncoderFacts(1, "image", "FlexiViT-B", "run", "cd", 512, image=IMAGE)
ABOUT_TEXT = EncoderFacts(1, "text", "FlexiViT-B", "run", "cd", 512, "int8", text=TEXT)


def test_facts_to_json_is_one_object_that_facts_from_json_reads() -> None:
    for facts in (ABOUT_IMAGE, ABOUT_TEXT):
        assert facts_from_json(facts_to_json(facts)) == facts
    said = json.loads(facts_to_json(ABOUT_IMAGE))
    assert (said["format"], said["role"], said["quantize"], said["text"]) == (1, "image", None, None)
    assert (said["image"]["image_size"], said["image"]["grid"], said["image"]["trained_seqhw"]) == ([48, 32], [6, 4], [2, 3])
    assert json.loads(facts_to_json(ABOUT_TEXT))["text"]["tokenizer"]["context_length"] == 77


def test_images_and_texts_are_the_section_of_the_role() -> None:
    assert ABOUT_IMAGE.images() is IMAGE
    assert ABOUT_TEXT.texts() is TEXT
    with pytest.raises(AssertionError, match="asked of an image encoder"):
        ABOUT_TEXT.images()
    with pytest.raises(AssertionError, match="asked of a text encoder"):
        ABOUT_IMAGE.texts()


def test_seqhw_is_the_side_of_a_square_grid() -> None:
    assert IMAGE.seqhw is None
    assert replace(IMAGE, grid=(6, 6)).seqhw == 6


def without(facts: EncoderFacts, *names: str, **changes: Any) -> str:
    said = json.loads(facts_to_json(facts))
    return json.dumps({name: value for name, value in said.items() if name not in names} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON text: "),
        ("[" * 100_000, "not a JSON text: "),
        ("7", "expected an object, not a int"),
        ("[]", "expected an object, not a list"),
        (without(ABOUT_IMAGE, "weights_sha256"), "weights_sha256"),
        (without(ABOUT_IMAGE, stray=1), "stray"),
        (without(ABOUT_IMAGE, role="sound"), "role"),
        (without(ABOUT_IMAGE, quantize="int4"), "quantize"),
        (without(ABOUT_IMAGE, format=2), "format=2: this version reads 1; update flexiclip, or export again"),
        (without(ABOUT_IMAGE, role="text"), "role=text: exactly the section of that name must be given"),
        (without(ABOUT_IMAGE, "image"), "role=image: exactly the section of that name must be given"),
        (without(ABOUT_TEXT, image=json.loads(facts_to_json(ABOUT_IMAGE))["image"]), "exactly the section of that name"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_facts_from_json_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        facts_from_json(text)
    assert message in str(error.value)


def test_sizes_that_no_machine_could_hold_are_refused() -> None:
    """A file from elsewhere says how large images and texts are; 2^14 is the most."""
    for name in ("image_size", "grid", "patch_size"):
        assert getattr(replace(IMAGE, **{name: (2**14, 1)}), name) == (2**14, 1)
        for pair in ((2**14 + 1, 1), (1, 2**14 + 1), (0, 1), (1, -1)):
            with pytest.raises(UserError, match="expected 1 to 16384"):
                replace(IMAGE, **{name: pair})
    assert replace(TEXT, tokenizer=replace(TEXT.tokenizer, context_length=2**14)).tokenizer.context_length == 2**14
    with pytest.raises(UserError, match=r"tokenizer\.context_length=16385 exceeds 16384"):
        replace(TEXT, tokenizer=replace(TEXT.tokenizer, context_length=2**14 + 1))


def test_tokenizer_folder_is_named_after_the_file() -> None:
    assert tokenizer_folder(Path("some/text.onnx").stem) == "text_tokenizer"


def test_origin_collects_the_facts_of_both_halves(folders: dict[str, Path]) -> None:
    """The sizes are those of kit/export_models.py: 48 px at seqhw 8 are patches of 6 px."""
    folder = folders["siglip"]
    origin = Origin.open(str(folder))
    loaded, digest = origin.loaded, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    image = origin.facts(ImageEncoder(loaded.model, 8, loaded.transform.preprocess), None)
    assert (image.format, image.role, image.architecture, image.embed_dim) == (1, "image", "FlexiViT-32x2", 32)
    assert (image.weights_sha256, image.quantize, image.text) == (digest, None, None)
    about = image.images()
    assert (about.image_size, about.grid, about.patch_size, about.seqhw) == ((48, 48), (8, 8), (6, 6), 8)
    assert (about.normalize_inside, about.trained_seqhw) == (True, (2, 3, 4, 6, 8))
    assert about.preprocess == loaded.transform.preprocess
    assert about.gflops == image_gflops(loaded.config.model, 8)
    text = origin.facts(TextEncoder(loaded.model), "int8")
    assert (text.role, text.weights_sha256, text.quantize, text.image) == ("text", digest, "int8", None)
    told = text.texts()
    assert (told.tokenizer.kind, told.tokenizer.context_length, told.tokenizer.path) == ("sentencepiece", 12, None)
    assert told.tokenizer_sha256 == loaded.tokenizer.fingerprint()
    assert (told.eos_id, told.pad_id) == (1, 1), "sticky EOS is its own padding"
    assert told.vocab_size == len(loaded.model.text_tower.token_embedding.weight)
    assert told.open_length is False
    for facts in (image, text):
        assert str(folder) not in facts_to_json(facts)
        assert facts_from_json(facts_to_json(facts)) == facts


def test_origin_is_named_after_the_run_or_the_folder(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits = load_model(make("ours", image={"depth": 2, "exits": (1,)}))
    save_model(tmp_path / "night" / "model", exits)
    save_model(tmp_path / "small", exits)
    monkeypatch.chdir(tmp_path / "small")
    for model, name, source in (
        (tmp_path / "night", "night", "night"),
        (tmp_path / "night" / "model", "night", "night"),
        (tmp_path / "small", "small", "small"),
        (".", "small", "small"),
        (f"{tmp_path / 'night'}+exit1", "night", "night+exit1"),
    ):
        origin = Origin.open(str(model))
        assert origin.name == name
        assert origin.facts(ImageEncoder(origin.loaded.model), None).source == source
    with pytest.raises(UserError, match="nowhere is not a model"):
        Origin.open("nowhere")
