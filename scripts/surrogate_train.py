"""Train a differentiable stand-in for a defense."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import surrogate

    w = snakemake.wildcards
    surrogate.train(plan, w.dataset, w.defense, Path(snakemake.output.card).parent)
