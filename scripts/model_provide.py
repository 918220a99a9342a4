"""Copy shipped weights or train a model."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel import RESOURCES
    from windtunnel.models.provide import provide

    provide(plan.model_spec(snakemake.wildcards.model), Path(snakemake.output.weights).parent, RESOURCES)
