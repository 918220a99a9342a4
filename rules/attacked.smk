"""Attacked images. In: an image set and a model. Out: results/attacked/{model}/{set}/{batch}.json with one part per attack,
bare and through a defense alike."""


rule surrogate_train:
    """A small network that learns what a defense answers: the gradient of an attack goes through it (rule unet)."""
    input:
        images=lambda w: f"results/images/{w.dataset}/manifest.json",
        networks=lambda w: PLAN.networks_of(w.defense),
    output:
        weights="results/surrogates/{dataset}/{defense}/weights.safetensors",
        card="results/surrogates/{dataset}/{defense}/card.json",
    log:
        "results/logs/surrogate_train/{dataset}/{defense}.log",
    benchmark:
        "results/benchmarks/surrogate_train/{dataset}/{defense}.tsv"
    priority: 20
    resources:
        mem_mb=2000,
    params:
        plan=plan_digest("surrogate_train"),
    script:
        "../scripts/surrogate_train.py"


rule attack:
    """All attacks of one (attacked model, image set, batch); a failed cell is a status part, the others go on."""
    input:
        images=lambda w: PLAN.attack_inputs(w.model, w.set, w.batch),
        weights=lambda w: PLAN.weights_of(w.model)["weights"],
        cards=lambda w: PLAN.weights_of(w.model)["cards"],
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
