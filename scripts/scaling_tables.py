"""Print the tables of docs/guides/scaling.md: plans of one recipe on 1 to 1,024 GPUs.

python -m scripts.scaling_tables flexiclip_b --device h100 --samples 400000000
python -m scripts.scaling_tables flexiclip_b model.image.variant=L ... --device a100
"""

from __future__ import annotations

import argparse

from flexiclip.config import load
from flexiclip.plan.plan import make_plan
from flexiclip.plan.result import Cluster, Plan
from scripts.pages import markdown_table

SIZES = ((1, 1), (1, 8), (8, 8), (32, 8), (128, 8))  # number of nodes, GPUs per node
COLUMNS = (
    "GPUs",
    "pairs per rank",
    "fits, peak",
    "micro_batch_size",
    "micro_tokens",
    "sent GB/step",
    "waits for the network",
    "images/s",
    "images/s per node",
    "hours",
    "GPU-hours",
)


def cells(plan: Plan) -> list[str]:
    """Return the cells of one row: the recipe's engine at its worst length, and averages over its lengths."""
    own = next(stage for stage in plan.stages if stage.own)
    world, hours = plan.cluster.world, plan.hours or 0.0
    network = sum(length.share * length.network_s for length in plan.lengths) / plan.mean_step_s
    return [
        f"{world:,}",
        f"{plan.local_batch:,}",
        f"{'yes' if own.fits else 'no'}, {own.memory.peak / 1e9:.0f} GB",
        f"{own.micro_batch_size or 0:,}",
        f"{own.micro_tokens or 0:,}",
        f"{own.traffic / 1e9:.1f}",
        f"{network:.0%}",
        f"{plan.images_per_s:,.0f}",
        f"{plan.images_per_s / plan.cluster.nodes:,.0f}",
        f"{hours:,.0f}",
        f"{hours * world:,.0f}",
    ]


def main() -> None:
    """Print the table of the recipe that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--device", default="h100")
    parser.add_argument("--samples", type=int, default=400_000_000)
    options = parser.parse_args()
    config = load(options.recipe, options.overrides)
    rows = [cells(make_plan(config, Cluster(nodes, gpus, options.device), options.samples)) for nodes, gpus in SIZES]
    print("\n".join(markdown_table(COLUMNS, rows, left=0)))


if __name__ == "__main__":
    main()
