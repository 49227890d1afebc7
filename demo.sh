#!/usr/bin/env bash
# From raw films and reports to a PyTorch model; `make demo` calls it.
# Your own data: leave out `simulate` and point `prepare --raw` at your copy.
set -euo pipefail
DEMO=${DEMO:-runs/demo}
JOBS=${JOBS:-2}
PATIENTS=${PATIENTS:-1100}
started=$SECONDS

step() { printf '\n== %s  [%d s]\n' "$1" "$((SECONDS - started))"; }

step "1/6 simulate a hospital: films, reports, labels"
medclip-jax simulate --out "$DEMO/raw" --patients "$PATIENTS" --chexpert-patients 700 \
  --test-fraction 0.52 --validate-fraction 0.1 --seed 0 --size 128 --jobs "$JOBS"

step "2/6 prepare shards"
medclip-jax prepare --dataset mimic_cxr --raw "$DEMO/raw/mimic-cxr" --out "$DEMO/shards" --jobs "$JOBS"
medclip-jax prepare --dataset chexpert --raw "$DEMO/raw/chexpert" --out "$DEMO/shards" --jobs "$JOBS"

step "3/6 pretrain MedCLIP on unpaired films and sentences"
medclip-jax train --config configs/medclip.py:demo --workdir "$DEMO/train" --data "$DEMO/shards"

step "4/6 train the supervised ceiling, for comparison alone"
medclip-jax train --config configs/supervised.py:demo --workdir "$DEMO/ceiling" --data "$DEMO/shards"

step "5/6 evaluate on patients that training never saw"
medclip-jax evaluate --workdir "$DEMO/train" --data "$DEMO/shards" \
  --protocols zero_shot,retrieval --ceiling "$DEMO/ceiling" --out "$DEMO/report"

step "6/6 export to PyTorch and verify"
medclip-jax export --workdir "$DEMO/train" --data "$DEMO/shards" --results "$DEMO/report" \
  --out "$DEMO/export" --verify

printf '\nDone in %d s.\n\n' "$((SECONDS - started))"
grep -E '^\| (protocol|---|zero_shot_five |retrieval_[a-z_]+ )' "$DEMO/report/results.md"
printf '\nAll figures: %s/report/results.md\nReport:      %s/report/report.html\n' "$DEMO" "$DEMO"
