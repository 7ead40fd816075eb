"""Encoders as torch programs: open sizes, no paths of this machine, and the facts beside the graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kit.exports import IMAGES, assert_same_embeddings, tokens_of
from torch import Tensor

from flexiclip.__main__ import main
from flexiclip.export.encoder_facts import Origin, facts_from_json
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.export.program import input_name, open_encoder, save, trace
from flexiclip.model_folder import LoadedModel


@torch.no_grad()
def test_torch_programs_give_the_embeddings_of_the_model(
    folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    model = opened["clip"].model
    for what, extra in (("image", ["--seqhw", "8"]), ("text", [])):
        file = tmp_path / f"{what}.pt2"
        assert main(["export", what, str(folders["clip"]), "--format", "torch", *extra, "--output", str(file)]) == 0
        said = {"flexiclip": ""}
        torch.export.load(file, extra_files=said)
        assert json.loads(said["flexiclip"])["role"] == what
        assert f'torch.export.load("{what}.pt2")' in file.with_suffix(".md").read_text()
    images, tokens = torch.randn(5, 3, 48, 48), torch.randint(0, opened["clip"].tokenizer.vocab_size, (4, 9))
    assert_same_embeddings(
        torch.export.load(tmp_path / "image.pt2").module()(images), model.encode_image(images, 8, normalize=True)
    )
    assert_same_embeddings(torch.export.load(tmp_path / "text.pt2").module()(tokens), model.encode_text(tokens, normalize=True))


@torch.no_grad()
def test_trace_leaves_the_batch_open_and_keeps_no_stack_trace(opened: dict[str, LoadedModel]) -> None:
    loaded = opened["siglip"]
    program = trace(ImageEncoder(loaded.model, 3, loaded.transform.preprocess))
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)
    encode = program.module()
    for batch in (1, 3):
        images = IMAGES[:batch].clamp(-1, 1).mul(127).add(128).to(torch.uint8)
        expected = loaded.model.encode_image((images.float() / 255 - 0.5) / 0.5, 3, normalize=True)
        assert_same_embeddings(encode(images), expected)


@torch.no_grad()
def test_trace_opens_the_length_of_a_text_where_the_tower_takes_fewer_columns(opened: dict[str, LoadedModel]) -> None:
    for name, lengths in (("ours", (12, 5, 1)), ("siglip", (12,))):
        loaded = opened[name]
        encode, tokens = trace(TextEncoder(loaded.model)).module(), tokens_of(loaded)
        for length in lengths:
            expected = loaded.model.encode_text(tokens[:, :length], normalize=True)
            assert_same_embeddings(encode(tokens[:, :length]), expected)
    with pytest.raises(AssertionError):
        encode(tokens[:, :5])


class OneBatch(ImageEncoder):
    """An encoder whose graph holds for batches of two alone."""

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = super().forward(images.view(2, 3, 48, 48))
        return found


def test_trace_fails_where_a_graph_holds_for_one_size(opened: dict[str, LoadedModel]) -> None:
    with pytest.raises(Exception, match="batch"):
        trace(OneBatch(opened["siglip"].model, 3))


@torch.no_grad()
def test_save_writes_the_facts_beside_the_graph_and_open_encoder_runs_it(
    folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    encoder = ImageEncoder(opened["ours"].model, 2)
    facts = Origin.open(str(folders["ours"])).facts(encoder, None)
    for name, given in (("with", facts), ("without", None)):
        save(encoder, tmp_path / f"{name}.pt2", given)
        said = {"flexiclip": ""}
        torch.export.load(tmp_path / f"{name}.pt2", extra_files=said)
        assert (facts_from_json(said["flexiclip"]) if said["flexiclip"] else None) == given
        found = open_encoder(tmp_path / f"{name}.pt2")(IMAGES)
        assert_same_embeddings(found, opened["ours"].model.encode_image(IMAGES, 2, normalize=True))


def test_input_name_is_what_the_encoder_takes(opened: dict[str, LoadedModel]) -> None:
    model = opened["ours"].model
    assert (input_name(ImageEncoder(model, 2)), input_name(TextEncoder(model))) == ("images", "tokens")
