"""Attacked images. In: an image set and a model. Out: results/attacked/{model}/{set}/{batch}.json with one part per attack,
bare and through a defense alike."""


rule attack:
    """All attacks of one (attacked model, image set, batch); a failed cell is a status part, the others go on."""
    input:
        images=lambda w: PLAN.attack_inputs(w.model, w.set, w.batch),
        weights="results/models/{model}/weights.safetensors",
        card="results/models/{model}/card.json",
    output:
        "results/attacked/{model}/{set}/{batch}.json",
    log:
        "results/logs/attack/{model}/{set}/{batch}.log",
    benchmark:
        "results/benchmarks/attack/{model}/{set}/{batch}.tsv"
    priority: 10
    retries: 1
    resources:
        mem_mb=2000,
        attempt=attempt_number,
    params:
        plan=plan_digest("attack"),
    script:
        "../scripts/attack.py"
