"""Write the metrics of one model."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import tables

    tables.write_model_metrics(plan, snakemake.wildcards.model, Path(snakemake.output[0]))
