"""Certificates by randomised smoothing. In: an image set, a model, networks of denoisers.
Out: results/certified/{model}/{set}/{shard}.json, one part per certificate; results/tables/{certified,certified_accuracy}.parquet.
"""


rule certify:
    """All certificates of one (model, image set), for every so-manieth sample: shards are independent of each other."""
    input:
        images=lambda w: PLAN.certify_inputs(w.model, w.set),
        weights="results/models/{model}/weights.safetensors",
        card="results/models/{model}/card.json",
    output:
        "results/certified/{model}/{set}/{shard}.json",
    log:
        "results/logs/certify/{model}/{set}/{shard}.log",
    benchmark:
        "results/benchmarks/certify/{model}/{set}/{shard}.tsv"
    priority: 10
    retries: 1
    resources:
        mem_mb=2000,
        attempt=attempt_number,
    params:
        plan=plan_digest("certify"),
    script:
        "../scripts/certify.py"


rule summarise_certified:
    """Every certificate sample by sample, and certified accuracy against the radius."""
    input:
        CERTIFIED,
    output:
        samples="results/tables/certified.parquet",
        accuracy="results/tables/certified_accuracy.parquet",
    log:
        "results/logs/summarise_certified.log",
    benchmark:
        "results/benchmarks/summarise_certified.tsv"
    resources:
        mem_mb=1000,
    params:
        plan=plan_digest("summarise_certified"),
    script:
        "../scripts/summarise_certified.py"
