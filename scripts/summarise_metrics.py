"""Write results/tables/metrics.parquet."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import tables

    tables.write_metrics(plan, Path(snakemake.output[0]))
