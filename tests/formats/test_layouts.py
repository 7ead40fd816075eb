"""The tables of names: each form against its definition, rows and grids by hand, and every table there and back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.formats import layouts
from flexiclip.formats.imported import Source, State
from flexiclip.formats.layouts import (
    BIAS_OF_HEADS,
    BIG_VISION_HEAD,
    BIG_VISION_IMAGE,
    BIG_VISION_SCALARS,
    BIG_VISION_TEXT,
    CLIP_IMAGE,
    FROM_HEADS,
    FUSED,
    INTO_HEADS,
    LAYER,
    OPEN_CLIP_IMAGE,
    OPEN_CLIP_TEXT,
    SCALARS,
    SIGLIP_IMAGE,
    TIMM,
    TRANSFORMERS_TEXT,
    Layout,
    Stored,
    below,
    is_square,
    layers,
    read_layout,
    set_grid,
    set_rows,
    single,
    write_layout,
)
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.text import build_text_tower

WIDTH, HEADS = 6, 2


def source(**tensors: Tensor) -> Source:
    return Source(tensors, "w.bin")


def numbered(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def test_forms_of_heads_are_the_layers_of_flax() -> None:
    """MultiHeadDotProductAttention: kernels [D, H, K] into the heads and [H, K, D] out of them, contracted by einsum."""
    x, into, bias, out = torch.randn(5, WIDTH), torch.randn(WIDTH, 2, 3), torch.randn(2, 3), torch.randn(2, 3, WIDTH)
    heads = torch.einsum("nd,dhk->nhk", x, into) + bias
    assert torch.allclose(F.linear(x, INTO_HEADS.read(into), BIAS_OF_HEADS.read(bias)), heads.flatten(1), atol=1e-5)
    assert torch.allclose(F.linear(heads.flatten(1), FROM_HEADS.read(out)), torch.einsum("nhk,hkd->nd", heads, out), atol=1e-5)


def test_pixels_first_is_the_kernel_of_jax() -> None:
    theirs = numbered(4, 5, 3, WIDTH)
    ours = layouts.PIXELS_FIRST.read(theirs)
    assert ours.shape == (WIDTH, 3, 4, 5)
    assert all(ours[d, c, i, j] == theirs[i, j, c, d] for d, c, i, j in itertools.product(*map(range, ours.shape)))


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (layouts.SAME, (3, 4)),
        (layouts.TRANSPOSED, (3, 4)),
        (layouts.BATCHED, (3, 4)),
        (layouts.PIXELS_FIRST, (4, 5, 3, WIDTH)),
        (INTO_HEADS, (WIDTH, HEADS, 3)),
        (BIAS_OF_HEADS, (HEADS, 3)),
        (FROM_HEADS, (HEADS, 3, WIDTH)),
    ],
    ids=["same", "transposed", "batched", "pixels first", "into heads", "bias of heads", "from heads"],
)
def test_each_form_writes_what_it_read(form: layouts.Form, shape: tuple[int, ...]) -> None:
    assert torch.equal(form.write(form.read(numbered(*shape)), HEADS), numbered(*shape))


def test_scalars_may_have_any_shape_of_one_number() -> None:
    for tensor in (torch.tensor(2.5), torch.tensor([2.5]), torch.tensor([[2.5]])):
        assert read_layout(source(logit_scale=tensor), SCALARS)["logit_scale"].tolist() == [2.5]
    assert list(write_layout({"logit_scale": torch.ones(1), "logit_bias": torch.zeros(1)}, BIG_VISION_SCALARS)) == ["t", "b"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["qkv"], ["q_", "k_", "v_"]),
        (["q", "kv"], ["in"]),
        (["q", "kv"], ["q_", "k_", "v_"]),
        (["qkv"], ["in"]),
    ],
    ids=["one from three", "two from one", "two from three", "one from one"],
)
def test_stored_splits_and_joins_queries_keys_and_values(ours: list[str], theirs: list[str]) -> None:
    q, k, v = numbered(3, 3 * WIDTH, WIDTH).view(3, 3, WIDTH, WIDTH)[0]
    biases = torch.randn(3, WIDTH)
    parts, rows = (q, k, v), Stored(ours, theirs, FUSED)
    if len(theirs) == 3:
        given = {f"{n}_weight": part for n, part in zip(theirs, parts, strict=True)}
        given |= {f"{n}_bias": part for n, part in zip(theirs, biases, strict=True)}
    else:
        given = {"in_weight": torch.cat(parts), "in_bias": biases.flatten()}
    expected = {"qkv.weight": torch.cat(parts), "qkv.bias": biases.flatten()}
    if len(ours) == 2:
        expected = {"q.weight": q, "q.bias": biases[0], "kv.weight": torch.cat([k, v]), "kv.bias": biases[1:].flatten()}
    assert_equal(rows.read(source(**given), 0), expected)
    assert_equal(rows.write(dict(expected), 0, HEADS), given)


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


BLOCKS = below("blocks.{}.", "h.{}.", layers({"fc": "lin"}), single({"gain": "g"}, optional=True))
TABLE: Layout = [*single({"posemb": "pos"}), *BLOCKS, *layers({"norm": "ln"}, optional=True)]


def test_layers_single_and_below_make_rows() -> None:
    assert layers({"a": "b", "c": "d"}, FUSED, optional=True) == [
        Stored(["a"], ["b"], FUSED, True),
        Stored(["c"], ["d"], FUSED, True),
    ]
    assert single({"a": "b"}, layouts.BATCHED) == [Stored(["a"], ["b"], {"": ("", layouts.BATCHED)}, False)]
    rows = below("x.", "y.", [Stored(["q", "kv"], ["in"], LAYER)], single({"a": "b"}))
    assert [(row.ours, row.theirs) for row in rows] == [(["x.q", "x.kv"], ["y.in"]), (["x.a"], ["y.b"])]


def test_read_layout_takes_every_block_and_what_is_optional() -> None:
    """Two blocks, one of them with the optional gain; nothing of a third, and no norm."""
    given = {"pos": torch.ones(1), "h.1.g": torch.full((1,), 3.0)}
    given |= {f"h.{i}.lin.{part}": torch.full((1,), float(i)) for i in range(2) for part in ("weight", "bias")}
    foreign = Source({**given, "h.3.lin.weight": torch.zeros(1)}, "w.bin")
    found = read_layout(foreign, TABLE)
    assert {name: tensor.item() for name, tensor in found.items()} == {
        "posemb": 1,
        "blocks.0.fc.weight": 0,
        "blocks.0.fc.bias": 0,
        "blocks.1.fc.weight": 1,
        "blocks.1.fc.bias": 1,
        "blocks.1.gain": 3,
    }
    assert "h.3.lin.weight" in foreign, "a block after a gap has no place, and `finish` names it"
    for missing in ("pos", "h.1.lin.bias"):
        with pytest.raises(UserError, match=f"the tensor '{missing}' is missing"):
            read_layout(Source({name: tensor for name, tensor in given.items() if name != missing}, "w.bin"), TABLE)


def test_read_layout_multiplies_layer_scale_into_the_layer() -> None:
    table = [*layers({"fc": "fc"}), *single({"fc.scale": "gamma"}, optional=True)]
    x, weight, bias, gamma = torch.randn(5, 3), torch.randn(2, 3), torch.randn(2), torch.randn(2)
    state = read_layout(Source({"fc.weight": weight, "fc.bias": bias, "gamma": gamma}, "w.bin"), table)
    assert state.keys() == {"fc.weight", "fc.bias"}
    assert torch.allclose(F.linear(x, state["fc.weight"], state["fc.bias"]), gamma * F.linear(x, weight, bias), atol=1e-6)


def test_write_layout_keeps_the_order_of_the_table_and_leaves_exits_out() -> None:
    state = {f"blocks.{i}.fc.{part}": torch.full((1,), float(i)) for i in (1, 0) for part in ("bias", "weight")}
    state |= {"posemb": torch.ones(1, requires_grad=True), "exit_norms.0.weight": torch.zeros(1)}
    found = write_layout(state, TABLE)
    assert list(found) == ["pos", *(f"h.{i}.lin.{part}" for i in range(2) for part in ("weight", "bias"))]
    assert [tensor.item() for tensor in found.values()] == [1, 0, 0, 1, 1]
    assert not found["pos"].requires_grad
    assert len(state) == 6, "the given state is left alone"
    with pytest.raises(AssertionError, match="tensors without a place in the layout: stray"):
        write_layout(state | {"stray": torch.zeros(1)}, TABLE)


def test_write_layout_of_a_head_without_a_projection_is_empty() -> None:
    assert write_layout({}, BIG_VISION_HEAD) == {}
    assert read_layout(source(), BIG_VISION_HEAD) == {}


def test_set_grid_by_hand() -> None:
    """Four positions of two channels, row by row, alone or after that of the class token."""
    rows = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    grid = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]]])
    for given in (rows, rows[None]):
        state = {"posemb": given}
        set_grid(state, "w.bin")
        assert_equal(state, {"posemb": grid})
    state = {"posemb": torch.cat([torch.tensor([[0.5, 0.25]]), rows]), "cls": torch.tensor([7.0, 8.0])}
    set_grid(state, "w.bin")
    assert_equal(state, {"posemb": grid, "cls": torch.tensor([[[7.5, 8.25]]])})
    state = {"posemb": rows, "cls": torch.tensor([[[7.0, 8.0]]])}
    set_grid(state, "w.bin")
    assert_equal(state, {"posemb": grid, "cls": torch.tensor([[[7.0, 8.0]]])})


def test_set_grid_refuses_what_is_not_a_square() -> None:
    with pytest.raises(UserError, match=r"^w\.bin: 5 positions, not a square grid$"):
        set_grid({"posemb": torch.zeros(1, 5, 2)}, "w.bin")
    with pytest.raises(UserError, match=r"^w\.bin: 6 positions, not a square grid$"):
        set_grid({"posemb": torch.zeros(7, 2), "cls": torch.zeros(2)}, "w.bin")


def test_set_rows_by_hand() -> None:
    grid = torch.tensor([[[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]]])
    rows, bias = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]), torch.tensor([0.5, 0.25])
    apart = {"posemb": grid, "bias": bias}
    set_rows(apart, bias_apart=True, class_row=False)
    assert_equal(apart, {"posemb": rows, "bias": bias})
    within = {"posemb": grid, "bias": bias, "cls": torch.tensor([[[7.0, 8.0]]])}
    set_rows(within, bias_apart=False, class_row=True)
    assert_equal(within, {"posemb": torch.cat([torch.zeros(1, 2), rows + bias]), "cls": torch.tensor([7.0, 8.0])})
    without = {"posemb": grid}
    set_rows(without, bias_apart=True, class_row=False)
    assert_equal(without, {"posemb": rows, "bias": torch.zeros(2)})


def test_is_square_by_brute_force() -> None:
    squares = {side * side for side in range(40)}
    assert all(is_square(number) == (number in squares) for number in range(1500))
    assert is_square(16384**2)
    assert not is_square(16384**2 - 1)


IMAGE = {"width": WIDTH, "depth": 2, "heads": HEADS, "image_size": 8, "base_patch_size": 4, "base_grid": 3}
TEXT = {"width": WIDTH, "depth": 2, "heads": HEADS, "vocab_size": 9, "pad_id": 0, "eos_id": 1, "context_length": 5}
CLIP, MAP = {"pool": "tok", "pre_norm": True, "patch_bias": False}, {"pool": "map"}


@pytest.mark.parametrize(
    ("layout", "settings", "bias_apart", "class_row"),
    [
        (TIMM, MAP, True, False),
        (TIMM, {"pool": "gap"}, True, False),
        (TIMM, {"pool": "tok"}, True, False),
        (OPEN_CLIP_IMAGE, CLIP, False, True),
        (OPEN_CLIP_IMAGE, CLIP | {"pre_norm": False}, False, True),
        (CLIP_IMAGE, CLIP, False, True),
        (SIGLIP_IMAGE, MAP, True, False),
        (BIG_VISION_IMAGE, MAP, True, False),
        (BIG_VISION_IMAGE, {"pool": "tok"}, True, False),
    ],
)
def test_write_layout_and_read_layout_are_opposites_for_image_towers(
    layout: Layout, settings: dict[str, Any], bias_apart: bool, class_row: bool
) -> None:
    before = filled(FlexiViT(ImageTowerConfig(**IMAGE | settings)))
    state = dict(before)
    set_rows(state, bias_apart, class_row)
    foreign = Source(write_layout(state, layout, HEADS), "w.bin")
    after = read_layout(foreign, layout)
    foreign.finish()
    set_grid(after, "w.bin")
    assert_equal(after, before)


@pytest.mark.parametrize("layout", [OPEN_CLIP_TEXT, TRANSFORMERS_TEXT, BIG_VISION_TEXT], ids=["open_clip", "hf", "big_vision"])
def test_write_layout_and_read_layout_are_opposites_for_text_towers(layout: Layout) -> None:
    before = filled(build_text_tower(TextTowerConfig(**TEXT)))
    foreign = Source(write_layout(before, layout, HEADS), "w.bin")
    after = read_layout(foreign, layout)
    foreign.finish()
    assert_equal(after, before)


def filled(tower: torch.nn.Module) -> State:
    """The state of a tower in which no two numbers are alike, so that a mix-up shows."""
    return {name: torch.randn(tensor.shape) for name, tensor in tower.state_dict().items()}
