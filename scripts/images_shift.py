"""Make the shifted versions of an image set."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import images

    images.shift(plan, snakemake.wildcards.set, Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
