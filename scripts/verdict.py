"""Say whether every cell of the run succeeded."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.jobs import verdict

    folders = [Path(folder) for folder in plan.surrogates.values()]
    folders += [Path("results/networks") / name for name in plan.networks]
    verdict(list(snakemake.input.manifests), Path(snakemake.output[0]), folders)
