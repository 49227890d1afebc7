#!/usr/bin/env bash
# Few pairs, much unpaired data: MedCLIP on all of it against CLIP on the pairs alone.
#   benchmarks/few_pairs.sh SHARDS OUT [FRACTION ...]
# SHARDS is what `make demo` prepared. A fraction is the share of patients whose films
# and reports stay joined; those of the others become films alone and texts alone.
# Same encoders, same steps, same batch, same films of unseen patients for both.
set -euo pipefail
SHARDS=${1:?prepared shards}
OUT=${2:?folder to write}
shift 2

for fraction in "${@:-0.1}"; do
  for method in medclip clip; do
    run="$OUT/$method-$fraction"
    medclip-jax train --config "$method:demo" --workdir "$run" --data "$SHARDS" \
      --config.data.paired_fraction="$fraction"
    medclip-jax evaluate --workdir "$run" --data "$SHARDS" --step latest \
      --protocols zero_shot,retrieval --out "$run-report"
  done
done
