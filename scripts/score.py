"""Score the observations of one batch and write its sample table."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import score

    score.score(plan, snakemake.wildcards.group, snakemake.wildcards.batch, Path(snakemake.output[0]))
