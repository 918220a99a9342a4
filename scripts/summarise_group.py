"""Write the metrics of one group of models."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import tables

    tables.write_group_metrics(plan, snakemake.wildcards.group, Path(snakemake.output[0]))
