#!/usr/bin/env bash
# Checks recipes/cluster with the tools of those that run them: Snakemake, and Kubernetes' schemas (kubernetes-validate, of PyPI), in
# target/recipes, where they can be had; Nextflow where it is there. What can't be had is skipped aloud.
. "$(dirname "$0")/setup.sh"

tools=$PWD/target/recipes
if ! [ -x "$tools/bin/snakemake" ]; then
    if ! { python3 -m venv "$tools" && "$tools/bin/pip" install --quiet snakemake==9.27.1 kubernetes-validate==1.37.0; }; then
        say "Snakemake and kubernetes-validate can't be had from PyPI"
    fi
fi
PATH=$tools/bin:$PATH cargo test --release --locked --test suite -- cluster::recipes
