"""Train the network that a defense carries, or take it from a file."""

from pathlib import Path

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.stages import network

    network.provide(plan, snakemake.wildcards.network, Path(snakemake.output.card).parent)
