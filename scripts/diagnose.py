"""Measure around single images: one model, one image set."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import diagnose

    w = snakemake.wildcards
    diagnose.diagnose(plan, w.model, w.set, Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
