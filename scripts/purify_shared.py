"""Purify a data set with one defense family."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import purify

    w = snakemake.wildcards
    purify.purify_shared(plan, w.dataset, w.family, Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
