#!/usr/bin/env bash
# Pretrains on small packs of real films and texts, and measures on held-out patients:
#   benchmarks/real_films.sh PACKS OUT
# PACKS holds covid_cxr (films with case notes), nih_cxr14_sample (films with labels
# and no text) and roco_cxr_captions (captions without films), each with a
# metadata.csv. Writes OUT/medclip and OUT/clip with a report each. About 10 minutes
# on two cores.
set -euo pipefail
PACKS=${1:?folder of the packs}
OUT=${2:?folder to write}

prepare() { medclip-jax prepare --dataset csv --size 320 --out "$OUT/shards" "$@"; }
prepare --name covid_cxr --raw "$PACKS/covid_cxr" --label-map covid_cxr
prepare --name nih_cxr14 --raw "$PACKS/nih_cxr14_sample" --label-map nih_cxr14
prepare --name roco_cxr_captions --raw "$PACKS/roco_cxr_captions"

for method in medclip clip; do
  medclip-jax train --config "$method:packs" --workdir "$OUT/$method" --data "$OUT/shards"
  # Views apart: in the NIH sample the view tells much of the label.
  medclip-jax evaluate --workdir "$OUT/$method" --data "$OUT/shards" --step latest \
    --protocols zero_shot,retrieval --by-view --out "$OUT/$method-report"
done
