#!/usr/bin/env bash
# Few pairs, much unpaired data: MedCLIP on all of it against CLIP on the pairs alone.
#   benchmarks/few_pairs.sh SHARDS OUT [FRACTION ...]
# SHARDS is what `make demo` prepared. A fraction is the share of patients whose films
# and reports stay joined; those of the others become films alone and texts alone.
# Same encoders, steps, batch and films of unseen patients for both; STEPS is 800 unless
# it is set, which takes about 8 minutes a fraction on two cores.
set -euo pipefail
SHARDS=${1:?prepared shards}
OUT=${2:?folder to write}
STEPS=${STEPS:-800}
shift 2

for fraction in "${@:-0.1}"; do
  for method in medclip clip; do
    run="$OUT/$method-$fraction"
    medclip-jax train --config "$method:demo" --workdir "$run" --data "$SHARDS" \
      --config.data.paired_fraction="$fraction" --config.train.steps="$STEPS"
    medclip-jax evaluate --workdir "$run" --data "$SHARDS" --step latest \
      --protocols zero_shot,retrieval --out "$run-report"
  done
done
