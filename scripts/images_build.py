"""Build or adopt the splits of a data set."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import images

    images.build(plan, snakemake.wildcards.dataset, Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
