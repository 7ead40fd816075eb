"""Cross-entropies and distillation losses against their definitions in float64, big_vision's arrays, and one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from kit.loss_reference import rows
from torch import Tensor

from flexiclip.losses import classifier_kl, cosine_distance, kl_rows, sigmoid_xent, similarity_kl, softmax_xent

GOLDEN = Path(__file__).parents[1] / "golden" / "extras.npz"
N, C = 12, 5
SCALE = torch.tensor([2.0], dtype=torch.float64)
TEACHER_SCALE = torch.tensor([2.5], dtype=torch.float64)


def table(seed: int, width: int = C) -> Tensor:
    return torch.randn(N, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGETS = table(3).softmax(1)
TEACHER = rows(N + 1, dim=6)[0][:N], rows(N + 2, dim=6)[1][:N]  # another joint space than the student's


def slow_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum over p log(p / q), times T^2, of a row."""
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    return temperature**2 * (p * (p / q).log()).sum()


def slow_similarity_kl(zimg: Tensor, ztxt: Tensor, scale: Tensor, own: slice, temperature: float) -> Tensor:
    ours = scale.exp() * zimg @ ztxt.T
    theirs = TEACHER_SCALE.exp() * TEACHER[0] @ TEACHER[1].T
    pairs = [*zip(ours, theirs, strict=True), *zip(ours.T, theirs.T, strict=True)]
    return torch.stack([slow_kl(s, t, temperature) for s, t in pairs]).mean()


def slow_softmax(logits: Tensor, own: slice) -> Tensor:
    return torch.stack([-(t * (x - x.exp().sum().log())).sum() for x, t in zip(logits, TARGETS, strict=True)]).mean()


def slow_sigmoid(logits: Tensor, own: slice) -> Tensor:
    p = 1 / (1 + (-logits).exp())
    return -(TARGETS * p.log() + (1 - TARGETS) * (1 - p).log()).sum() / N


Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]
CASES: dict[str, Case] = {
    "softmax": (lambda z, own: softmax_xent(z, TARGETS[own]), slow_softmax, [table(1)]),
    "sigmoid": (lambda z, own: sigmoid_xent(z, TARGETS[own]), slow_sigmoid, [table(1)]),
    "kl": (
        lambda z, own: classifier_kl(z, table(2)[own], 3.0),
        lambda z, own: torch.stack([slow_kl(s, t, 3.0) for s, t in zip(z, table(2), strict=True)]).mean(),
        [table(1)],
    ),
    "cosine": (
        lambda z, own: cosine_distance(F.normalize(z, dim=1), rows(N)[1][own]),
        lambda z, own: 1 - F.cosine_similarity(z, rows(N)[1]).mean(),
        [table(1, width=8)],
    ),
    "similarity": (
        lambda zimg, ztxt, s, own: similarity_kl((zimg, ztxt), (TEACHER[0][own], TEACHER[1][own]), s, TEACHER_SCALE, 2.0),
        lambda zimg, ztxt, s, own: slow_similarity_kl(zimg, ztxt, s, own, 2.0),
        [*rows(N), SCALE],
    ),
}


def differentiate(loss: Callable[..., Tensor], inputs: list[Tensor], own: slice) -> list[Tensor]:
    """The loss and its gradients; a scalar has one element."""
    given = [x[own].clone().requires_grad_() if len(x) == N else x.clone().requires_grad_() for x in inputs]
    value = loss(*given, own=own)
    return [value.detach(), *torch.autograd.grad(3.0 * value, given)]


def expected_of(name: str, own: slice = slice(0, N)) -> list[Tensor]:
    value, *gradients = differentiate(CASES[name][1], CASES[name][2], slice(0, N))
    return [value, *(g[own] if len(g) == N else g for g in gradients)]


def assert_equal_to_the_definition(name: str) -> None:
    """The loss and all its gradients."""
    found = differentiate(CASES[name][0], CASES[name][2], slice(0, N))
    for value, wanted in zip(found, expected_of(name), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_losses_are_equal_to_their_definition(name: str) -> None:
    assert_equal_to_the_definition(name)


def test_similarity_kl_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexiclip.losses.targets.CPU_TILE", 5 * N)  # 5, 5 and 2 rows at a time
    assert_equal_to_the_definition("similarity")


@pytest.mark.parametrize("temperature", [1, 2])
def test_kl_equals_big_visions(temperature: int) -> None:
    golden = np.load(GOLDEN)
    student, teacher = (torch.from_numpy(golden[name]) for name in ("student", "teacher"))
    np.testing.assert_allclose(kl_rows(student, teacher, temperature), golden[f"kl_t{temperature}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(dtype: torch.dtype) -> None:
    zimg, ztxt = (z.to(dtype).requires_grad_() for z in rows(N))
    scale = SCALE.to(dtype).requires_grad_()
    loss = similarity_kl((zimg, ztxt), (zimg.detach(), ztxt.detach()), scale, SCALE.to(dtype))
    assert loss == 0
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(loss, [zimg, ztxt, scale]))
    logits = table(1).to(dtype).requires_grad_()
    loss = classifier_kl(logits, logits.detach(), 2.0)
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].abs().max() < (1e-7 if dtype == torch.float32 else 1e-15)


def _on_rank(rank: int, folder: Path, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    own = slice(rank * N // world, (rank + 1) * N // world)
    found: dict[str, Any] = {name: differentiate(case[0], case[2], own) for name, case in CASES.items()}
    dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


def test_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(_on_rank, (tmp_path, 3), nprocs=3)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in CASES:
            for value, wanted in zip(found[name], expected_of(name, slice(rank * 4, rank * 4 + 4)), strict=True):
                torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")
