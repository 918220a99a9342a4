"""Summaries. In: sample tables and manifests. Out: results/metrics/{group}.parquet,
results/tables/{cells,metrics,costs,diagnostics}.parquet."""


rule summarise_group:
    """Metrics with intervals of one model, each training seed for itself: a pure function of its samples."""
    input:
        lambda w: [f"results/tables/samples/{m}.{b}.parquet" for m, b in PLAN.score_jobs if m == w.group],
    output:
        "results/metrics/{group}.parquet",
    log:
        "results/logs/summarise_group/{group}.log",
    benchmark:
        "results/benchmarks/summarise_group/{group}.tsv"
    priority: 7
    resources:
        mem_mb=1500,
    params:
        plan=plan_digest("summarise_group"),
    script:
        "../scripts/summarise_group.py"


rule summarise_metrics:
    """All models' metrics, with means over training seeds and paired tests between models."""
    input:
        groups=[f"results/metrics/{g}.parquet" for g in PLAN.groups],
        diagnostics="results/tables/diagnostics.parquet",
    output:
        "results/tables/metrics.parquet",
    log:
        "results/logs/summarise_metrics.log",
    benchmark:
        "results/benchmarks/summarise_metrics.tsv"
    resources:
        mem_mb=1500,
    params:
        plan=plan_digest("summarise_metrics"),
    script:
        "../scripts/summarise_metrics.py"


rule summarise_cells:
    """One row per cell: settings, counts, honesty checks, digests, versions."""
    input:
        samples=SAMPLE_FILES,
        cards=[f"results/models/{m}/card.json" for m in PLAN.models],
        diagnostics="results/tables/diagnostics.parquet",
        manifests=MANIFESTS,
    output:
        "results/tables/cells.parquet",
    log:
        "results/logs/summarise_cells.log",
    benchmark:
        "results/benchmarks/summarise_cells.tsv"
    resources:
        mem_mb=2000,
    params:
        plan=plan_digest("summarise_cells"),
    script:
        "../scripts/summarise_cells.py"


rule summarise_costs:
    """Seconds, memory and gradient evaluations of every part: the one table that differs between two runs."""
    input:
        MANIFESTS,
    output:
        "results/tables/costs.parquet",
    log:
        "results/logs/summarise_costs.log",
    benchmark:
        "results/benchmarks/summarise_costs.tsv"
    resources:
        mem_mb=500,
    params:
        plan=plan_digest("summarise_costs"),
    script:
        "../scripts/summarise_costs.py"


rule summarise_diagnostics:
    """Every measurement around single images, sample by sample."""
    input:
        DIAGNOSED,
    output:
        "results/tables/diagnostics.parquet",
    log:
        "results/logs/summarise_diagnostics.log",
    benchmark:
        "results/benchmarks/summarise_diagnostics.tsv"
    resources:
        mem_mb=1000,
    params:
        plan=plan_digest("summarise_diagnostics"),
    script:
        "../scripts/summarise_diagnostics.py"
