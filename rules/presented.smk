"""Presentation. In: the tables. Out: printed tables, figures, results/report.html, results/verdict.ok."""


rule present_tables:
    """The paper-style tables as Markdown, CSV, LaTeX and HTML."""
    input:
        samples=SAMPLE_FILES,
        cells="results/tables/cells.parquet",
        metrics="results/tables/metrics.parquet",
        costs="results/tables/costs.parquet",
        certified="results/tables/certified_accuracy.parquet",
        diagnostics="results/tables/diagnostics.parquet",
        images=[f"results/images/{d}/manifest.json" for d in PLAN.datasets],
    output:
        **{
            name: report(
                f"results/tables/printed/{name}.html", caption=f"../report/table_{name}.rst", category="Tables"
            )
            for name in TABLE_NAMES
        },
        index="results/tables/printed/index.json",
    log:
        "results/logs/present_tables.log",
    benchmark:
        "results/benchmarks/present_tables.tsv"
    resources:
        mem_mb=2000,
    params:
        plan=plan_digest("present_tables"),
    script:
        "../scripts/present_tables.py"


rule present_figures:
    """Every figure as SVG and PNG, from the tables and the stored images."""
    input:
        samples=SAMPLE_FILES,
        cells="results/tables/cells.parquet",
        metrics="results/tables/metrics.parquet",
        diagnostics="results/tables/diagnostics.parquet",
        certified="results/tables/certified.parquet",
        manifests=MANIFESTS,
        images=[f"results/images/{d}/manifest.json" for d in PLAN.datasets],
    output:
        **{
            name: report(f"results/figures/{name}.svg", caption=f"../report/figure_{name}.rst", category="Figures")
            for name in FIGURE_NAMES
        },
    log:
        "results/logs/present_figures.log",
    benchmark:
        "results/benchmarks/present_figures.tsv"
    resources:
        mem_mb=2000,
    params:
        plan=plan_digest("present_figures"),
    script:
        "../scripts/present_figures.py"


rule render_report:
    """One HTML file that opens without a network: Snakemake's own report over the tables and figures."""
    input:
        FIGURES,
        "results/tables/printed/index.json",
        "results/tables/costs.parquet",
    output:
        "results/report.html",
    log:
        "results/logs/render_report.log",
    benchmark:
        "results/benchmarks/render_report.tsv"
    localrule: True
    params:
        snakefile=workflow.main_snakefile,
        configs=(["--configfile", *CONFIG_FILES] if workflow.overwrite_configfiles else []),
    shell:
        "snakemake tables figures --snakefile {params.snakefile:q} {params.configs:q} --report {output:q} --nolock "
        "--workflow-profile none > {log:q} 2>&1"


rule verdict:
    """Last: fails if any cell failed, naming each, and forgets the failed parts so that the next run tries them again."""
    input:
        manifests=MANIFESTS,
        report="results/report.html",
    output:
        "results/verdict.ok",
    log:
        "results/logs/verdict.log",
    benchmark:
        "results/benchmarks/verdict.tsv"
    localrule: True
    params:
        plan=plan_digest("verdict"),
    script:
        "../scripts/verdict.py"


rule bill:
    """What the run asks for, before it runs: cells, jobs, gradient evaluations, time, disk."""
    log:
        "results/logs/bill.log",
    localrule: True
    script:
        "../scripts/bill.py"


onerror:
    jobs.leave_last_words("results")
