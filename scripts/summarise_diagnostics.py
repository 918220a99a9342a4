"""All measurements of the run in one table."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import tables

    tables.write_diagnostics(plan, Path(snakemake.output[0]))
