"""Make the attacked images of one batch."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import attack

    w = snakemake.wildcards
    attack.attack(plan, w.model, w.set, w.batch, Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
