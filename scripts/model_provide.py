"""Train a model, or take the user's own file."""

from pathlib import Path

from windtunnel.jobs import log, script

with script(snakemake) as plan:
    from windtunnel import RESOURCES
    from windtunnel.models.provide import provide

    name = snakemake.wildcards.model
    if (RESOURCES / "models" / name).is_dir():
        log.warning("%s: the shipped weights are of another recipe or other data; training", name)
    provide(plan.model_spec(name), Path(snakemake.output.weights).parent)
