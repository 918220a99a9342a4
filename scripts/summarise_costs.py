"""Write results/tables/costs.parquet."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import tables

    tables.write_costs(plan, Path(snakemake.output[0]))
