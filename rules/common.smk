"""Shared by all stages: the plan of this run, checked before any job; locks and damaged parts of a killed run.

In: the config. Out: PLAN and the helpers below. Nothing here computes.
"""

import sys
from pathlib import Path

from windtunnel.present.names import FIGURE_NAMES, TABLE_NAMES

CONFIG_FILES = [str(f) for f in workflow.configfiles or workflow.overwrite_configfiles or []]

try:
    PLAN = Plan.of(dict(config), source=" + ".join(CONFIG_FILES) or "config", base=Path.cwd())
except ConfigError as error:
    raise WorkflowError(str(error))

FLAGS = set(sys.argv[1:])
LOOKING = FLAGS & {"-n", "--dry-run", "--dryrun", "--report", "--lint", "--unlock", "--dag", "--rulegraph", "--summary"}

if workflow.is_main_process and FLAGS & {"-n", "--dry-run", "--dryrun"}:
    print("\n".join(PLAN.bill_lines()), file=sys.stderr)

if workflow.is_main_process and not LOOKING:
    try:
        sentence = lock.claim()
    except lock.FolderBusy as error:
        raise WorkflowError(str(error))
    if sentence:
        print(f"windtunnel: {sentence}", file=sys.stderr)
    for path in jobs.remove_damaged("results", PLAN.run.verify_parts_up_to_mb):
        print(f"windtunnel: '{path}' was damaged or missing and will be made again", file=sys.stderr)

SAMPLE_FILES = [f"results/tables/samples/{m}.{b}.parquet" for m, b in PLAN.score_jobs]
FIGURES = [f"results/figures/{name}.svg" for name in FIGURE_NAMES]
DIAGNOSED = [f"results/diagnosed/{m}/{s}.json" for m, s in PLAN.diagnostic_jobs]
CERTIFIED = [
    f"results/certified/{m}/{s}/{i}.json" for m, s in PLAN.certify_jobs for i in range(PLAN.run.certify_shards)
]
MANIFESTS = (
    [f"results/defended/{d}/{f}.json" for d, f in PLAN.purified]
    + [f"results/attacked/{m}/{s}/{b}.json" for m, s, b in PLAN.attack_jobs]
    + [f"results/observed/{m}/{b}.json" for m, b in PLAN.observe_jobs]
    + DIAGNOSED
    + CERTIFIED
)


def plan_digest(rule_name):
    """A function of wildcards for ``params``: the digest of all that decides what one job makes."""

    def digest(wildcards):
        return PLAN.digest(rule_name, **dict(wildcards.items()))

    return digest


def attempt_number(wildcards, attempt):
    """Which attempt this is: the second records the cell on which the first was killed."""
    return attempt


wildcard_constraints:
    dataset=r"[a-z0-9_]+",
    set=r"[a-z0-9_]+\.[a-z0-9_]+",
    model=r"[a-z0-9_-]+",
    network=r"[a-z0-9_-]+",
    group=r"[a-z0-9_-]+",
    batch=r"[a-z0-9_]+",
    family=r"[a-z0-9_-]+",
    defense=r"[a-z0-9_-]+",
    shard=r"[0-9]+",
