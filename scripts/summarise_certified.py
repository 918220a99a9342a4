"""All certificates of the run, and certified accuracy against the radius."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import summarise_certified

    summarise_certified.write(plan, Path(snakemake.output.samples), Path(snakemake.output.accuracy))
