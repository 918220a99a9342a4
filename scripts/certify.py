"""Certify by randomised smoothing: one model, one image set, one share of its samples."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import certify

    w = snakemake.wildcards
    certify.certify(plan, w.model, w.set, int(w.shard), Path(snakemake.output[0]), attempt=snakemake.resources.attempt)
