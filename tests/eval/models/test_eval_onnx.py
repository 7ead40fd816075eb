"""Exported encoders as a model of the harness: the same rows as the model that they were written from, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.models.protocol import ForeignModel, choose_lengths, has_text, trained_lengths
from flexiclip_eval.models.sources import open_model
from kit.evaluation import encode_one_by_one, texts_one_by_one, toy_model, toys, unit, write_shards, write_suite

from flexiclip.__main__ import main
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, save_model

LENGTHS = (3, 6)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def exported(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: toy-3.onnx, toy-6.onnx, toy-text.onnx, cards and tokenizer."""
    folder = tmp_path_factory.mktemp("exported")
    save_model(folder.parent / "run" / "model", loaded)
    source = str(folder.parent / "run")
    assert main(["export", "image", source, "--seqhw", "6,3", "--output", str(folder / "toy.onnx")]) == 0
    assert main(["export", "text", source, "--output", str(folder / "toy-text.onnx")]) == 0
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def set_fact(path: Path, *keys: str, value: object) -> None:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = model.metadata_props
        facts = section = json.loads(entry.value)
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        entry.value = json.dumps(facts)

    edit(path, change)


def test_rows_and_embeddings_are_those_of_the_model(loaded: LoadedModel, exported: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(23, (2,)), (9, 14)))
    expected = evaluate_suites([("toy", loaded)], [suite], seqhw=LENGTHS, options=EvalOptions(batch_size=5))
    kept = tmp_path / "kept"
    for _ in range(2):  # the second time from what is kept
        rows = evaluate_suites([str(exported)], [suite], options=EvalOptions(batch_size=5, embeddings=kept))
        for row, want in zip(rows, expected, strict=True):
            assert row.metrics == pytest.approx(want.metrics, abs=1e-6)
            assert (row.task, row.n, row.seqhw, row.seq_len) == (want.task, want.n, want.seqhw, want.seq_len)
            assert (row.model, row.pretrained) == (want.model, str(exported))
            assert (row.patch_size, row.image_size, row.gflops) == (want.patch_size, want.image_size, want.gflops)
    assert len(list(kept.glob("images-*"))) == 2
    opened = open_model(f"{exported}/toy", "cpu")  # by prefix
    assert choose_lengths(opened, None) == list(LENGTHS)
    assert trained_lengths(opened) == (2, 3, 6)
    with pytest.raises(UserError, match="this model runs at 3,6"):
        choose_lengths(opened, [2])
    images = torch.stack([opened.transform(toy.image) for toy in toys(5)])
    texts = [caption for toy in toys(5) for caption in toy.captions]
    for length in LENGTHS:
        found = unit(opened.model.encode_image(images, seqhw=length).numpy())
        np.testing.assert_allclose(found, encode_one_by_one(loaded, toys(5), length), rtol=0, atol=1e-4)
    assert torch.equal(opened.tokenizer(texts), loaded.tokenizer(texts))
    found = unit(opened.model.encode_text(opened.tokenizer(texts)).numpy())
    np.testing.assert_allclose(found, texts_one_by_one(loaded, texts), rtol=0, atol=1e-4)


def test_a_file_says_what_feeds_it(loaded: LoadedModel, exported: Path) -> None:
    """Read as somebody else would: onnxruntime and json alone."""
    facts = {}
    for name in ("toy-6", "toy-text"):
        session = onnxruntime.InferenceSession(str(exported / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        facts[name] = json.loads(session.get_modelmeta().custom_metadata_map["flexiclip"])
    image, text = facts["toy-6"]["image"], facts["toy-text"]["text"]
    assert (facts["toy-6"]["role"], facts["toy-6"]["architecture"], facts["toy-6"]["source"]) == ("image", "FlexiViT-16x1", "run")
    assert (image["image_size"], image["grid"], image["patch_size"]) == ([24, 24], [6, 6], [4, 4])
    assert image["preprocess"] == {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": "shortest", "interpolation": "bicubic"}
    assert image["normalize_inside"] is False
    assert (text["tokenizer"]["kind"], text["tokenizer"]["context_length"], text["tokenizer"]["path"]) == (
        "sentencepiece",
        16,
        None,
    )
    assert (text["tokenizer_sha256"], text["eos_id"]) == (loaded.tokenizer.fingerprint(), loaded.tokenizer.eos_id)
    assert facts["toy-text"]["weights_sha256"] == facts["toy-6"]["weights_sha256"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "toy-3.onnx").write_bytes((f / "toy-3.onnx").read_bytes()[:5000]), "toy-3.onnx: cannot be read as ONNX"),
        (lambda f: edit(f / "toy-3.onnx", lambda m: m.ClearField("metadata_props")), "toy-3.onnx: it does not say what it is"),
        (lambda f: (f / "other.onnx").write_bytes(b""), "other.onnx: it does not say what it is"),
        (lambda f: set_fact(f / "toy-3.onnx", "format", value=2), "format=2: this version reads 1"),
        (lambda f: set_fact(f / "toy-3.onnx", "image", "image_size", value=[24, 10**9]), "expected 1 to 16384"),
        (lambda f: set_fact(f / "toy-3.onnx", "image", "image_size", value="24"), "image.image_size='24': expected a list"),
        (lambda f: set_fact(f / "toy-3.onnx", "weights_sha256", value="0"), "come from different models"),
        (lambda f: set_fact(f / "toy-3.onnx", "image", "normalize_inside", value=True), "take differently prepared images"),
        (lambda f: set_fact(f / "toy-3.onnx", "image", "grid", value=[6, 6]), "toy-6.onnx are both the image encoder at seqhw 6"),
        (lambda f: shutil.copy(f / "toy-text.onnx", f / "more.onnx"), "are both a text encoder"),
        (lambda f: [(f / f"toy-{length}.onnx").unlink() for length in LENGTHS], "no image encoder among toy-text.onnx"),
        (lambda f: shutil.rmtree(f / "toy-text_tokenizer"), "toy-text_tokenizer: no tokenizer files there"),
        (
            lambda f: (f / "toy-text_tokenizer" / "sentencepiece.model").write_bytes(b"x"),
            "toy-text.onnx: its tokenizer: tokenizer.path=sentencepiece.model: not a sentencepiece model",
        ),
        (lambda f: edit(f / "toy-3.onnx", lambda m: m.graph.node.pop()), "onnxruntime cannot load it"),
        (lambda f: edit(f / "toy-3.onnx", lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].Clear()), "its metadata say"),
    ],
)
def test_what_is_damaged_or_foreign_is_one_line(
    spoil: Callable[[Path], object], said: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(6), (6,)))
    spoil(copy)
    assert main(["eval", str(copy), "--suite", suite, "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_without_text_with_a_fixed_batch_and_without_the_package(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "toy-text.onnx").unlink()
    whole = open_model(str(copy), "cpu")
    images = torch.stack([whole.transform(toy.image) for toy in toys(5)])
    expected = whole.model.encode_image(images, seqhw=3)

    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        model.graph.ClearField("value_info")

    edit(copy / "toy-3.onnx", fix)
    fixed = open_model(str(copy), "cpu")
    torch.testing.assert_close(fixed.model.encode_image(images, seqhw=3), expected, rtol=0, atol=1e-5)
    assert isinstance(fixed, ForeignModel)
    assert not has_text(fixed)
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(6), (6,)))
    with pytest.raises(UserError, match="image tower alone"):
        evaluate_suites([str(copy)], [suite])
    with pytest.raises(UserError, match=r"exported encoders hold their lengths; flex the model that toy-3\.onnx comes from"):
        open_model(f"{copy}+pi", "cpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python's own way to make an import fail
    with pytest.raises(UserError, match=r"package onnxruntime is not installed; run `pip install 'flexiclip\[export\]'`"):
        open_model(str(copy), "cpu")


@pytest.mark.slow
def test_open_model_of_an_encoder_that_normalizes_inside(loaded: LoadedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", loaded)
    options = ["--normalize-inside", "--seqhw", "2", "--output", str(tmp_path / "out" / "i.onnx")]
    assert main(["export", "image", str(tmp_path / "model"), *options]) == 0
    opened = open_model(str(tmp_path / "out" / "i.onnx"), "cpu")
    images = torch.stack([opened.transform(toy.image) for toy in toys(3)])
    assert images.dtype == torch.uint8
    found = unit(opened.model.encode_image(images).numpy())
    np.testing.assert_allclose(found, encode_one_by_one(loaded, toys(3), 2), rtol=0, atol=1e-4)
