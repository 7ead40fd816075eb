"""big_vision's `.npz` of every age: each old form reads as the new one, bit for bit, and what is damaged or left over is refused.

That its weights land in the right places is for test_flexivit.py and test_text_base.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.golden import FOLDER, largest_difference
from kit.weights import images, imported, refused, vocabulary

from flexiclip.data.tokenizers import build_tokenizer
from flexiclip.errors import UserError
from flexiclip.formats.big_vision_reader import import_big_vision, read_npz, read_tower
from flexiclip.formats.imported import sentencepiece_config
from flexiclip.formats.layouts import BIG_VISION_IMAGE, BIG_VISION_TEXT
from flexiclip.model_folder import LoadedModel


def test_prefixed_files_read_alike(tmp_path: Path) -> None:
    plain = read_npz(FOLDER / "text_params.npz")
    np.savez(tmp_path / "prefixed.npz", **{f"params/{name}": array for name, array in plain.items()})
    prefixed = read_npz(tmp_path / "prefixed.npz")
    assert prefixed.keys() == plain.keys()
    assert all(np.array_equal(prefixed[name], plain[name]) for name in plain)


def test_arrays_left_over_or_missing_are_named() -> None:
    text, image = (read_npz(FOLDER / f"{name}_params.npz") for name in ("text", "flexivit_map"))
    with pytest.raises(UserError, match=r"without a place in the tower: extra/bias, opt/count; "):
        read_tower({**text, "opt/count": np.zeros(1), "extra/bias": np.zeros(1)}, BIG_VISION_TEXT)
    with pytest.raises(UserError, match="'embedding/kernel' is missing"):
        read_tower(text, BIG_VISION_IMAGE)
    with pytest.raises(UserError, match="48 positions, not a square grid"):
        read_tower({**image, "pos_embedding": image["pos_embedding"][:, :48]}, BIG_VISION_IMAGE)


def test_pickles_and_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", head=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("pickle.npz", "text.npz", "missing.npz"):
        with pytest.raises(UserError, match="cannot read it as an"):
            read_npz(tmp_path / name)


def test_the_head_is_a_linear_layer() -> None:
    arrays = read_npz(FOLDER / "text_params.npz")
    _, head = read_tower(arrays, BIG_VISION_TEXT)
    assert np.array_equal(head["weight"].numpy(), np.asarray(arrays["head/kernel"]).T)
    assert np.array_equal(head["bias"].numpy(), arrays["head/bias"])
    headless = {name: array for name, array in arrays.items() if not name.startswith("head/")}
    assert read_tower(headless, BIG_VISION_TEXT)[1] == {}


Arrays = dict[str, np.ndarray]
ATTENTION = "MultiHeadDotProductAttention"


def golden_arrays(name: str) -> Arrays:
    with np.load(FOLDER / f"{name}_params.npz") as file:
        return {key: file[key] for key in file.files}


def written(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def prefixed(arrays: Arrays, prefix: str) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def same(a: LoadedModel, b: LoadedModel) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def stacked(arrays: Arrays, encoder: str) -> Arrays:
    """As lax.scan keeps the blocks: one array for all layers."""
    apart = {name: array for name, array in arrays.items() if f"{encoder}/encoderblock_" not in name}
    for name in [name for name in arrays if f"{encoder}/encoderblock_0/" in name]:
        layers = [arrays[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(2)]
        apart[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    return apart


def before_linen(arrays: Arrays) -> Arrays:
    """LayerNorm_0, Attention_1, LayerNorm_2, MlpBlock_3 in a block, and the positions in a module of the encoder."""
    old = {}
    for name, array in arrays.items():
        if "encoderblock" in name:
            for now, then in (("LayerNorm_1", "LayerNorm_2"), (f"{ATTENTION}_0", f"{ATTENTION}_1"), ("MlpBlock_0", "MlpBlock_3")):
                name = name.replace(now, then)
        old[name] = array
    old["Transformer/posembed_input/pos_embedding"] = old.pop("pos_embedding")
    return old


def inlined_map(arrays: Arrays) -> Arrays:
    return {name.removeprefix("MAPHead_0/"): array for name, array in arrays.items()}


OLD_FORMS: dict[str, tuple[str, Callable[[Arrays], Arrays]]] = {
    "params": ("map", lambda a: prefixed(a, "params/")),
    "training checkpoint": ("gap", lambda a: prefixed(a, "params/") | {"opt/0/count": np.zeros(1)}),
    "flax optimiser": ("gap", lambda a: prefixed(a, "opt/target/") | {"opt/state/step": np.zeros(1)}),
    "scan": ("map", lambda a: stacked(a, "Transformer")),
    "before linen": ("gap", before_linen),
    "positions in the encoder": (
        "gap",
        lambda a: {("Transformer/" if name == "pos_embedding" else "") + name: array for name, array in a.items()},
    ),
    "inlined map": ("map", inlined_map),
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_old_forms_read_as_the_new_one(form: str, tmp_path: Path) -> None:
    pool, change = OLD_FORMS[form]
    arrays = golden_arrays(f"flexivit_{pool}")
    now = imported(written(tmp_path / "now.npz", arrays), "big_vision", tmp_path / "now")
    old = imported(written(tmp_path / "old.npz", change(arrays)), "big_vision", tmp_path / "old")
    assert same(now, old)
    assert len(now.model.image_tower.blocks) == 2
    said = " ".join(old.provenance["import_notes"])
    assert ("training state" in said) == ("opt/" in " ".join(change(arrays)))


@torch.no_grad()
def test_a_class_token_with_a_position(tmp_path: Path) -> None:
    """Old files add the first of 1 + 49 positions to the class token; the sum is what the tower sees."""
    arrays = golden_arrays("flexivit_gap")
    rng = np.random.default_rng(0)
    cls, position = rng.normal(size=(2, 1, 1, 64)).astype(np.float32)
    old = arrays | {"cls": cls, "pos_embedding": np.concatenate([position, arrays["pos_embedding"]], axis=1)}
    new = arrays | {"cls": cls + position}
    a = imported(written(tmp_path / "old.npz", old), "big_vision", tmp_path / "old")
    b = imported(written(tmp_path / "new.npz", new), "big_vision", tmp_path / "new")
    assert same(a, b)
    assert a.config.model.image.pool == "tok"
    assert a.model.image_tower.cls is not None
    assert largest_difference(a.model.image_tower.cls, torch.from_numpy(cls + position)) == 0
    assert "class token's position" in " ".join(a.provenance["import_notes"])


def test_bfloat16_is_read_as_its_value(tmp_path: Path) -> None:
    arrays = golden_arrays("flexivit_gap")
    cut = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}
    rounded = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in cut.items()}
    halves = {name: array.view("V2") for name, array in cut.items()}
    a = imported(written(tmp_path / "halves.npz", halves), "big_vision", tmp_path / "a")
    assert same(a, imported(written(tmp_path / "floats.npz", rounded), "big_vision", tmp_path / "b"))


def two_towers(**more: Any) -> Arrays:
    """Golden towers as one file; the image head is cut to the text's 32 numbers by a random one."""
    image, text = golden_arrays("flexivit_map"), golden_arrays("text")
    rng = np.random.default_rng(1)
    image |= {"head/kernel": rng.normal(size=(64, 32)).astype(np.float32), "head/bias": rng.normal(size=32).astype(np.float32)}
    scalars = {"t": np.array([4.77], np.float32), "b": np.array([-12.5], np.float32)}
    return prefixed(image, "img/") | prefixed(text, "txt/") | scalars | more


@torch.no_grad()
def test_old_forms_of_two_towers(tmp_path: Path) -> None:
    spm = vocabulary(tmp_path / "sp.model")
    now = imported(written(tmp_path / "now.npz", two_towers()), "siglip", tmp_path / "now", "--text", spm)
    scanned = stacked(stacked(two_towers(), "img/Transformer"), "txt/Encoder_0")
    old = imported(written(tmp_path / "old.npz", prefixed(scanned, "params/")), "big_vision", tmp_path / "old", "--text", spm)
    assert same(now, old)
    halved = two_towers()
    halved["txt/pos_embedding"] = halved["txt/pos_embedding"] / 2
    halved["txt/Encoder_0/pos_embedding"] = halved["txt/pos_embedding"]  # added twice, as by old trainers
    assert same(now, imported(written(tmp_path / "twice.npz", halved), "big_vision", tmp_path / "twice", "--text", spm))
    config = now.config.model
    assert (config.image.image_size, config.embed_dim, config.logit_bias_init) == (224, 32, -12.5)
    assert config.logit_scale_max == pytest.approx(np.exp(4.77), rel=1e-5), "SigLIP's scale may exceed CLIP's 100"
    assert now.config.tokenizer.sticky_eos
    assert now.model.encode_image(images(224), 7).shape == (2, 32)


def test_lit_without_an_image_head(tmp_path: Path) -> None:
    """out_dim=(None, D): the image half is its tower, and the text half meets its width."""
    arrays = {name: array for name, array in two_towers().items() if not name.startswith("img/head") and name != "b"}
    rng = np.random.default_rng(2)
    arrays |= {"txt/head/kernel": rng.normal(size=(64, 64)).astype(np.float32), "txt/head/bias": np.zeros(64, np.float32)}
    spm = vocabulary(tmp_path / "sp.model")
    loaded = imported(written(tmp_path / "lit.npz", arrays), "big_vision", tmp_path / "m", "--text", spm)
    assert loaded.config.model.image.projection == "none"
    assert loaded.model.logit_bias is None
    with torch.no_grad():
        assert torch.equal(loaded.model.encode_image(images(224)), loaded.model.image_tower(images(224)))


@torch.no_grad()
def test_a_text_half_with_a_map_head_pools_by_it(tmp_path: Path) -> None:
    """big_vision's text_transformer with pool_type="map"; the probe of the golden image tower stands in."""
    head = {f"txt/{name}": array for name, array in golden_arrays("flexivit_map").items() if name.startswith("MAPHead_0/")}
    spm = vocabulary(tmp_path / "sp.model")
    loaded = imported(written(tmp_path / "w.npz", two_towers(**head)), "big_vision", tmp_path / "m", "--text", spm)
    tower: Any = loaded.model.text_tower
    assert loaded.config.model.text is not None
    assert loaded.config.model.text.pool == "map"
    tokens = loaded.tokenizer(["a red fox", "a blue owl"])
    x = tower.token_embedding(tokens) + tower.posemb[:, : tokens.shape[1]]
    for block in tower.blocks:
        x = block(x)
    pooled = tower.map_head(tower.norm(x))
    assert largest_difference(loaded.model.encode_text(tokens), loaded.model.text_projection(pooled)) < 1e-5


def without(arrays: Arrays, name: str) -> Arrays:
    return {key: array for key, array in arrays.items() if key != name}


REFUSED: dict[str, tuple[Callable[[], Arrays], tuple[str, ...], str]] = {
    "no tokenizer": (two_towers, (), "--text FILE"),
    "text alone": (lambda: golden_arrays("text"), (), "a text tower alone"),
    "stray": (lambda: golden_arrays("flexivit_gap") | {"stray": np.zeros(1)}, (), "without a place in the tower: stray;"),
    "stray beside params": (
        lambda: prefixed(golden_arrays("flexivit_gap"), "params/") | {"ema/x": np.zeros(1)},
        (),
        "without a place in the tower: ema/x;",
    ),
    "tanh layer": (lambda: golden_arrays("flexivit_gap") | {"pre_logits/bias": np.zeros(64)}, (), "a tanh layer between"),
    "missing": (
        lambda: without(golden_arrays("flexivit_gap"), "Transformer/encoder_norm/bias"),
        (),
        "'Transformer/encoder_norm/bias' is missing",
    ),
    "missing block": (
        lambda: without(golden_arrays("flexivit_gap"), "Transformer/encoderblock_1/LayerNorm_0/scale"),
        (),
        "encoderblock_1",
    ),
    "missing scale": (lambda: without(two_towers(), "t"), ("--text", "SPM"), "'t' is missing"),
    "no text half": (
        lambda: {name: array for name, array in two_towers().items() if not name.startswith("txt/")},
        ("--text", "SPM"),
        "it has img/ but no txt/",
    ),
    "towers that do not meet": (
        lambda: two_towers(**{"img/head/kernel": np.zeros((64, 9), np.float32), "img/head/bias": np.zeros(9, np.float32)}),
        ("--text", "SPM"),
        "the image half gives 9 numbers, the text half 32",
    ),
    "BERT": (
        lambda: {n: a for n, a in two_towers().items() if not n.startswith("txt/")} | {"txt/BertModel_0/x": np.zeros(1)},
        ("--text", "SPM"),
        "its text tower is a BERT",
    ),
    "heads": (lambda: golden_arrays("flexivit_gap"), ("--heads", "8"), "have 4 heads"),
    "arch": (lambda: golden_arrays("flexivit_gap"), ("--arch", "B"), "--arch has no meaning"),
    "vocabulary": (
        lambda: two_towers(**{"txt/Embed_0/embedding": np.zeros((9, 64), np.float32)}),
        ("--text", "SPM"),
        "below the tokenizer's",
    ),
    "pickle": (lambda: {"head": np.array([{"a": 1}], dtype=object)}, (), "cannot read it as an .npz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_import_of_big_vision_refuses_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, options, message = REFUSED[case]
    options = tuple(str(vocabulary(tmp_path / "sp.model")) if option == "SPM" else option for option in options)
    assert message in refused(capsys, written(tmp_path / "w.npz", make()), "big_vision", tmp_path / "m", *options)


@pytest.mark.parametrize(("words", "sticky"), [(256_000, False), (1000, True)])
def test_siglip_2_fills_up_with_padding_and_every_other_with_eos(words: int, sticky: bool, tmp_path: Path) -> None:
    """256,000 words are Gemma's; big_vision then pads with <pad> (pp/ops_text.py, `tok`), and lower-cases in either case."""
    arrays = two_towers(**{"txt/Embed_0/embedding": np.zeros((words, 64), np.float32)})
    np.savez_compressed(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    found = import_big_vision(tmp_path / "w.npz", vocabulary(tmp_path / "sp.model"))
    assert found.text is not None
    assert found.text.config.vocab_size == words
    assert (found.tokenizer.sticky_eos, found.tokenizer.lowercase) == (sticky, True)
    assert found.tokenizer.context_length == 16
    row = build_tokenizer(found.tokenizer)("A Red FOX")[0]
    assert row[-1] == (1 if sticky else 0), "EOS is 1, padding is 0"
    assert torch.equal(row, build_tokenizer(found.tokenizer)("a red fox")[0])


@pytest.mark.parametrize(("words", "sticky"), [(256_000, False), (32_000, True)])
def test_a_sentencepiece_model_in_place_of_a_folders_tokenizer_pads_likewise(words: int, sticky: bool) -> None:
    found = sentencepiece_config(Path("sp.model"), 64, words)
    assert (found.path, found.context_length, found.sticky_eos, found.lowercase) == ("sp.model", 64, sticky, True)
