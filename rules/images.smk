"""Image sets. In: nothing (composed from what scikit-learn, scikit-image and matplotlib carry) or a user's Parquet file.
Out: results/images/{dataset}/manifest.json with one Parquet file per split; results/images/{set}/shifted.json likewise.
"""


rule images_build:
    """Build or adopt every split of a data set that the run needs."""
    output:
        "results/images/{dataset}/manifest.json",
    log:
        "results/logs/images_build/{dataset}.log",
    benchmark:
        "results/benchmarks/images_build/{dataset}.tsv"
    resources:
        mem_mb=1000,
        attempt=attempt_number,
    params:
        plan=plan_digest("images_build"),
    script:
        "../scripts/images_build.py"


rule images_shift:
    """Make the shifted versions (noise, blur, contrast, JPEG artefacts, pixel shifts) of one image set."""
    input:
        lambda w: f"results/images/{w.set.split('.')[0]}/manifest.json",
    output:
        "results/images/{set}/shifted.json",
    log:
        "results/logs/images_shift/{set}.log",
    benchmark:
        "results/benchmarks/images_shift/{set}.tsv"
    priority: 20  # short, and the clean observations wait for it
    resources:
        mem_mb=1000,
        attempt=attempt_number,
    params:
        plan=plan_digest("images_shift"),
    script:
        "../scripts/images_shift.py"
