"""Let a model look at the images of one batch."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import observe

    w = snakemake.wildcards
    observe.observe(plan, w.group, w.batch, Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
