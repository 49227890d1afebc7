#!/usr/bin/env bash
# Every data set and every protocol, on the model of `make demo`; `make demo-all` calls it.
# Your own data: prepare what you have of these sets, then run `evaluate` alone.
set -euo pipefail
DEMO=${DEMO:-runs/demo}
JOBS=${JOBS:-2}
PATIENTS=${PATIENTS:-1100}
BENCHMARKS=${BENCHMARKS:-240}
started=$SECONDS

step() { printf '\n== %s  [%d s]\n' "$1" "$((SECONDS - started))"; }

step "1/3 add the sets that models are judged on to the simulated hospital"
medclip-jax simulate --out "$DEMO/raw" --patients "$PATIENTS" --chexpert-patients 700 \
  --test-fraction 0.52 --validate-fraction 0.1 --seed 0 --size 128 --jobs "$JOBS" \
  --benchmarks "$BENCHMARKS"

step "2/3 prepare them"
# The miniatures hold the faults of the real sets: some rows are refused by design.
for raw in "$DEMO"/raw/benchmarks/*/; do
  name=$(basename "$raw")
  [ "$name" != mimic_dicom ] || continue  # the films of MIMIC-CXR again, as DICOM
  medclip-jax prepare --dataset "${name%_v2}" --name "$name" --raw "$raw" \
    --out "$DEMO/shards" --jobs "$JOBS" --max-rejected-percent 20
done

step "3/3 evaluate: all protocols"
medclip-jax evaluate --workdir "$DEMO/train" --data "$DEMO/shards" --protocols all \
  --minimum 8 --tune-steps 60 --ceiling "$DEMO/ceiling" --out "$DEMO/report_all"

printf '\nDone in %d s.\nAll figures: %s/report_all/results.md\nReport:      %s/report_all/report.html\n' \
  "$((SECONDS - started))" "$DEMO" "$DEMO"
