"""Print what the run would cost."""

from windtunnel.jobs import script

with script(snakemake) as plan:
    from windtunnel.jobs import say

    say(plan.bill_lines())
