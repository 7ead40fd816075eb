"""Our own text tower against big_vision's golden output and open_clip's CLIP transformer, and what trimming and masks promise."""

from __future__ import annotations

from dataclasses import replace

import open_clip.transformer
import pytest
import torch
import torch.nn.functional as F
from kit.golden import FOLDER, golden, largest_difference

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.formats.big_vision_reader import read_npz, read_tower
from flexiclip.formats.layouts import BIG_VISION_TEXT
from flexiclip.models.text import TextTransformer, build_text_tower, trim_padding
from flexiclip.models.text.base import caption_end, last_used, mean_over

PAD, EOS, VOCAB, LENGTH = 0, 99, 100, 12
TINY = TextTowerConfig(
    width=32, depth=2, heads=2, vocab_size=VOCAB, pad_id=PAD, eos_id=EOS, context_length=LENGTH, pad_mask=True, pool="eos"
)


def captions(*lengths: int, pad: int = PAD) -> torch.Tensor:
    """Random rows of `lengths` tokens, EOS included, filled up to LENGTH."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.full((len(lengths), LENGTH), pad)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, EOS, (length - 1,), generator=generator)
        row[length - 1] = EOS
    return tokens


def tiny(**changes: object) -> TextTransformer:
    torch.manual_seed(0)
    tower = build_text_tower(replace(TINY, **changes))  # type: ignore[arg-type]
    assert isinstance(tower, TextTransformer)
    return tower.eval()


@torch.no_grad()
def test_text_transformer_equals_big_vision() -> None:
    state, head = read_tower(read_npz(FOLDER / "text_params.npz"), BIG_VISION_TEXT)
    config = TextTowerConfig(
        width=64,
        depth=2,
        heads=4,
        mlp_dim=128,
        vocab_size=1000,
        pad_id=1,
        eos_id=1,
        context_length=16,
        pad_mask=False,
        pool="last",
    )
    tower = TextTransformer(config)
    tower.load_state_dict(state)
    expected = golden("text_outputs")
    found = F.linear(tower(expected["text"].long()), head["weight"], head["bias"])
    assert largest_difference(found, expected["last_logits"]) < 2e-5


def from_open_clip(theirs: open_clip.transformer.TextTransformer) -> dict[str, torch.Tensor]:
    """open_clip's parameter names in ours, its projection left out."""
    renames = {
        "token_embedding": "token_embedding",
        "transformer.resblocks": "blocks",
        "ln_final": "norm",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_weight": "attn.qkv.weight",
        "attn.in_proj_bias": "attn.qkv.bias",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    state = {"posemb": theirs.positional_embedding[None]}
    for name, tensor in theirs.state_dict().items():
        if name not in ("positional_embedding", "text_projection"):
            for old, new in renames.items():
                name = name.replace(old, new)
            state[name] = tensor
    return state


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_equals_clip_trimmed_or_not(activation: str) -> None:
    torch.manual_seed(0)
    act = {"gelu": torch.nn.GELU, "quick_gelu": open_clip.transformer.QuickGELU}[activation]
    theirs = open_clip.transformer.TextTransformer(
        LENGTH, VOCAB, width=32, heads=2, layers=3, output_dim=16, act_layer=act
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    ours = tiny(depth=3, causal=True, pad_mask=False, activation=activation, norm_eps=1e-5)
    ours.load_state_dict(from_open_clip(theirs))
    tokens = captions(2, 9, 5)
    expected = theirs(tokens)  # pools at the largest id, which is EOS
    for columns in (tokens, trim_padding(tokens, PAD)):
        assert largest_difference(ours(columns) @ theirs.text_projection, expected) < 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pad_mask", [False, True])
@pytest.mark.parametrize("pool", ["last", "eos", "mean", "map"])
@torch.no_grad()
def test_trims_exactly_when_it_says_so(causal: bool, pad_mask: bool, pool: str) -> None:
    tower = tiny(causal=causal, pad_mask=pad_mask, pool=pool)
    tokens = captions(3, 7, 4)
    difference = largest_difference(tower(trim_padding(tokens, PAD)), tower(tokens))
    assert (difference < 1e-5) == tower.trims
    assert tower.trims == (pool != "last" and (pad_mask or (causal and pool == "eos")))


@torch.no_grad()
def test_masked_padding_has_no_influence_and_the_caption_has() -> None:
    tokens = captions(4)
    other = tokens.clone()
    other[0, 6] = 50  # after EOS
    for pool in ("eos", "mean", "map"):
        tower = tiny(pool=pool)
        assert torch.equal(tower(tokens), tower(other))
        changed = tokens.clone()
        changed[0, 1] = (changed[0, 1] % 50) + 1
        assert largest_difference(tower(tokens), tower(changed)) > 1e-3
    blind = tiny(pool="mean", pad_mask=False)
    assert largest_difference(blind(tokens), blind(other)) > 1e-3


@torch.no_grad()
def test_mean_and_eos_are_taken_from_the_caption_alone() -> None:
    """A row of padding-free length equals its padded form, so the pools must have found the caption's own tokens."""
    tokens = captions(5)
    for pool in ("mean", "eos", "map"):
        tower = tiny(pool=pool)
        assert largest_difference(tower(tokens), tower(tokens[:, :5])) < 1e-6
    last, eos = tiny(pool="last"), tiny(pool="eos")
    assert largest_difference(last(tokens[:, :5]), eos(tokens)) < 1e-6


@torch.no_grad()
def test_sticky_eos_is_not_trimmed_and_an_empty_caption_is_finite() -> None:
    tokens = captions(1, 6, pad=EOS)
    for pool in ("last", "eos", "mean", "map"):
        tower = tiny(pad_id=EOS, pool=pool)
        assert not tower.trims
        assert tower(tokens).isfinite().all()
    tower = tiny(pad_id=EOS)
    same_captions = captions(1, 6)
    assert torch.equal(tower(tokens), tower(same_captions)), "the first EOS ends a caption, whatever fills it up"


@torch.no_grad()
def test_rows_without_eos_end_at_their_last_token() -> None:
    tower = tiny()
    tokens = captions(6, 4)
    tokens[tokens == EOS] = 7
    assert largest_difference(tower(trim_padding(tokens, PAD)), tower(tokens)) < 1e-6
    assert tower(torch.full((1, LENGTH), PAD)).isfinite().all()


def test_trim_padding_cuts_what_no_row_uses() -> None:
    tokens = torch.tensor([[5, 0, 9, 0, 0], [5, 9, 0, 0, 0]])
    assert trim_padding(tokens, 0).tolist() == [[5, 0, 9], [5, 9, 0]], "an id of padding inside a caption stays"
    assert trim_padding(torch.zeros(2, 4, dtype=torch.int64), 0).shape == (2, 1)
    assert trim_padding(torch.ones(2, 4, dtype=torch.int64), 0).shape == (2, 4)


def test_trimming_cuts_padding_only_for_a_tower_that_allows_it() -> None:
    def tokenizer(texts: list[str]) -> torch.Tensor:
        return captions(*map(len, texts))

    trims, whole = tiny(), tiny(pad_id=EOS)
    assert (trims.trims, whole.trims) == (True, False)
    assert torch.equal(trims.trimming(tokenizer)(["four", "twelve"]), captions(4, 6)[:, :6])
    assert whole.trimming(tokenizer) is tokenizer


def test_every_parameter_of_a_text_transformer_learns() -> None:
    for pool in ("eos", "map"):
        tower = tiny(pool=pool).train()
        tower(captions(3, LENGTH)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_what_is_not_known_or_does_not_fit_says_so() -> None:
    with pytest.raises(UserError, match=r"model\.text\.vocab_size is not known"):
        TextTransformer(TextTowerConfig(variant="Ti"))
    with pytest.raises(UserError, match="takes 12 tokens, not 13"):
        tiny()(torch.ones(1, LENGTH + 1, dtype=torch.int64))


def test_mean_over_last_used_and_caption_end_by_hand() -> None:
    x = torch.tensor([[[1.0], [3.0], [8.0]], [[2.0], [5.0], [7.0]]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_over(x, valid).tolist() == [[2.0], [0.0]], "zeros for a row without any"
    tokens = torch.tensor([[4, PAD, 6, PAD], [PAD, PAD, PAD, PAD], [7, EOS, 8, EOS], [7, 8, PAD, PAD]])
    assert last_used(tokens, PAD).tolist() == [2, 0, 3, 1]
    assert caption_end(tokens, PAD, EOS).tolist() == [2, 0, 1, 1], "the first EOS, else the last token"
