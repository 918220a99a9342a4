"""Write results/tables/cells.parquet."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import tables

    tables.write_cells(plan, Path(snakemake.output[0]))
