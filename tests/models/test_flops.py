"""The FLOPs of the image tower against torch's own count of the operations that it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.config.schema import Size, pair
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flops import image_model_flops
from flexiclip.models.text import build_text_tower

TEXT = TextTowerConfig(width=16, depth=1, heads=2, vocab_size=8, pad_id=0, eos_id=1, context_length=4)


def count(run: Callable[[], object]) -> int:
    """FLOPs of the operations that `run` starts. torch counts matmuls and the fused attentions of GPUs, but not the CPU's."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def flops(config: ImageTowerConfig, seqhw: Size, embed_dim: int) -> int:
    return image_model_flops(ModelConfig(config, TEXT, embed_dim=embed_dim), seqhw)


def counted(config: ImageTowerConfig, seqhw: Size, embed_dim: int, batch: int = 1) -> int:
    """FLOPs of encode_image without those of the two resizes."""
    model = FlexiCLIP(ModelConfig(config, TEXT, embed_dim=embed_dim), build_text_tower(TEXT)).eval()
    tower = model.image_tower
    (height, width), (gh, gw) = tower.image_size, pair(seqhw)
    resizes = count(lambda: tower.resize_kernel(tower.kernel, (height // gh, width // gw)))
    resizes += count(lambda: tower.resize_grid(tower.posemb, (gh, gw)))
    assert resizes > 0
    return count(lambda: model.encode_image(torch.zeros(batch, 3, height, width), seqhw)) - resizes


@pytest.mark.parametrize("seqhw", [3, 4, 6, 12])
@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_image_tower_flops_are_what_torch_counts(pool: str, seqhw: int) -> None:
    config = ImageTowerConfig(
        width=48,
        depth=3,
        heads=4,
        mlp_dim=100,
        image_size=48,
        base_patch_size=10,
        base_grid=5,
        pool=pool,  # type: ignore[arg-type]
    )
    assert flops(config, seqhw, 20) == counted(config, seqhw, 20)


def test_a_rectangle_without_projection() -> None:
    config = ImageTowerConfig(width=16, depth=1, heads=2, image_size=(24, 48), base_patch_size=5, base_grid=5, projection="none")
    assert flops(config, (3, 6), 16) == counted(config, (3, 6), 16)


def test_batches_cost_in_proportion() -> None:
    """All but the MAP head's query, which a batch computes once."""
    config = ImageTowerConfig(width=32, depth=2, heads=2, image_size=24, base_patch_size=7, base_grid=5)
    assert counted(config, 4, 8, batch=3) == 3 * flops(config, 4, 8)
    with_map = ImageTowerConfig(width=32, depth=2, heads=2, image_size=24, base_patch_size=7, base_grid=5, pool="map")
    assert counted(with_map, 4, 8, batch=3) == 3 * flops(with_map, 4, 8) - 2 * (2 * 32 * 32)


def test_image_tower_flops_of_the_published_vit_b() -> None:
    """ViT-B/16 at 224 px: 17.6 G multiply-adds in the literature (DeiT, table 5), with classifier and all tokens to the end."""
    config = ImageTowerConfig(variant="B", image_size=224, base_patch_size=16, base_grid=14, pool="gap")
    assert flops(config, 14, 1000) / 2 == pytest.approx(17.56e9, rel=0.01)
