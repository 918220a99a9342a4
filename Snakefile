"""Windtunnel: what happens to an image classifier when the world is not kind. Targets and includes, nothing else.

snakemake --cores 8              the whole run of config/config.yaml: tables, figures, results/report.html
snakemake --cores 8 tables       up to a milestone: images, models, attacks, defenses, scores, tables, figures
snakemake bill                   what the run would cost, before it runs; a dry run (-n) says it too
snakemake --cores 8 attacks_full every attack, adaptive ones and diagnostics: config/attacks_full.yaml in runs/attacks_full, for hours
snakemake --cores 8 defenses_full, realism             the same for defenses, and for one question about learned codecs
snakemake --cores 8 --configfile config/tiny.yaml      another run
"""

from snakemake.utils import min_version

min_version("9.10")


include: "rules/library.smk"


if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/config/{NAMED_RUN}.yaml" if NAMED_RUN else "config/config.yaml"


if NAMED_RUN and not workflow.overwrite_configfiles:

    # a folder of its own: two runs in one folder would remove each other's parts
    workdir: jobs.folder_of(NAMED_RUN)


container: "docker://python:3.11"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/images.smk"
include: "rules/models.smk"
include: "rules/attacked.smk"
include: "rules/diagnosed.smk"
include: "rules/certified.smk"
include: "rules/defended.smk"
include: "rules/observed.smk"
include: "rules/scored.smk"
include: "rules/summarised.smk"
include: "rules/presented.smk"


localrules:
    all,
    attacks_full,
    defenses_full,
    realism,
    images,
    models,
    attacks,
    defenses,
    scores,
    tables,
    figures,


rule all:
    """The whole run: everything below, the report, and a verdict that fails if any cell failed."""
    default_target: True
    input:
        "results/report.html",
        "results/verdict.ok",


rule attacks_full:
    """Everything of config/attacks_full.yaml: all attacks, adaptive ones and diagnostics included."""
    input:
        rules.all.input,


rule defenses_full:
    """Everything of config/defenses_full.yaml: every defense, attacked through every rule, rounds, rates, certificates."""
    input:
        rules.all.input,


rule realism:
    """config/realism.yaml: does a realistic decoder resist attack better than a faithful one at the same rate?"""
    input:
        rules.all.input,


rule images:
    """Milestone: all image sets, shifted ones included."""
    input:
        [f"results/images/{d}/manifest.json" for d in PLAN.datasets],
        [f"results/images/{s}/shifted.json" for s in PLAN.shifted_sets],


rule models:
    """Milestone: all models provided."""
    input:
        [f"results/models/{m}/card.json" for m in PLAN.models],


rule attacks:
    """Milestone: all attacked images."""
    input:
        [f"results/attacked/{m}/{s}/{b}.json" for m, s, b in PLAN.attack_jobs],


rule defenses:
    """Milestone: all clean image sets purified."""
    input:
        [f"results/defended/{d}/{f}.json" for d, f in PLAN.purified],


rule scores:
    """Milestone: the sample tables, scores included."""
    input:
        SAMPLE_FILES,


rule tables:
    """Milestone: samples, cells, metrics, costs and the printed tables."""
    input:
        "results/tables/cells.parquet",
        "results/tables/metrics.parquet",
        "results/tables/costs.parquet",
        "results/tables/diagnostics.parquet",
        "results/tables/certified.parquet",
        "results/tables/certified_accuracy.parquet",
        "results/tables/printed/index.json",


rule figures:
    """Milestone: the figures."""
    input:
        FIGURES,
