"""Print the figures."""

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import present

    present.write_figures(plan)
