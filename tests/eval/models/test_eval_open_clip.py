"""`flexiclip eval open_clip:NAME`: another library's model through the command line, against that library called directly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.formats.open_clip_reader import import_open_clip
from flexiclip.formats.run import build_imported
from flexiclip.models.flops import image_flops, image_model_flops

NAME = "ViT-S-32-alt"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 220), "white": (250, 250, 250)}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    with webdataset.TarWriter(str(tmp_path / "colours-0000.tar")) as writer:
        for name, colour in COLOURS.items():
            image = np.broadcast_to(np.array(colour, np.uint8), (48, 48, 3))
            writer.write({"__key__": name, "png": Image.fromarray(image.copy()), "txt": f"a {name} square"})
    path = tmp_path / "colours.yaml"
    path.write_text(
        f"datasets: [{{name: colours, shards: {tmp_path}/colours-*.tar, captions: txt, tasks: [{{kind: retrieval}}]}}]\n"
    )
    return path


def test_an_open_clip_model_by_name_and_weight_file(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(NAME)
    weights = tmp_path / "weights.pt"
    torch.save(model.state_dict(), weights)
    source = f"open_clip:{NAME}/{weights}"
    assert main(["eval", source, "--suite", str(suite), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    images = torch.stack([transform(Image.new("RGB", (48, 48), colour)) for colour in COLOURS.values()])
    with torch.no_grad():
        zimg = model.eval().encode_image(images, normalize=True)
        ztxt = model.encode_text(open_clip.get_tokenizer(NAME)([f"a {name} square" for name in COLOURS]), normalize=True)
    found = (ztxt @ zimg.T).argmax(dim=1) == torch.arange(len(COLOURS))
    assert row["metrics"]["image_retrieval_recall@1"] == pytest.approx(found.float().mean().item(), abs=1e-6)
    assert (row["model"], row["n"], row["seqhw"], row["seq_len"]) == (NAME, 4, 7, 49)
    assert (row["patch_size"], row["image_size"]) == (32, 224)
    imported = build_imported(import_open_clip(NAME, str(weights)), NAME)
    ours = image_flops(imported.config.model.image, 7)  # whose last block computes the class token alone
    whole = image_model_flops(imported.config.model, 7) - ours.forward + ours.all_tokens().forward
    assert row["gflops"] == pytest.approx(whole / 1e9, rel=1e-6)


@pytest.mark.parametrize(
    ("source", "said"),
    [("open_clip:ViT-Nothing", "open_clip knows no model 'ViT-Nothing'"), (f"open_clip:{NAME}/no-such-tag", "cannot load it")],
)
def test_what_open_clip_does_not_have_is_one_line(
    source: str, said: str, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", source, "--suite", str(suite)]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
