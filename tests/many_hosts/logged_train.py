"""`medclip-jax train` that also notes which records it reads, and each row it trains on.

python -m logged_train NOTES [arguments of train]: process P writes NOTES/P.json.
"""

import hashlib
import json
import sys
import threading
from collections import defaultdict
from pathlib import Path

import jax

from data_pipelines import records
from medclip_jax import cli, train
from medclip_jax.inputs import reader
from medclip_jax.runtime import mesh as mesh_lib

# By step, or "start": kind of record -> rows read, in any order.
READS: dict = defaultdict(lambda: defaultdict(list))
# By step: name of a leaf -> global row -> digest of its bytes on the device.
ROWS: dict = defaultdict(dict)
_now = threading.local()
_lock = threading.Lock()


def note_reads() -> None:
    read, batch = records.Records.__getitem__, reader.TrainInput.batch

    def noted_read(self, row):
        with _lock:
            READS[getattr(_now, "step", "start")][self.kind].append(int(row))
        return read(self, row)

    def noted_batch(self, step):
        _now.step = step  # batches are made by threads, each as a whole
        return batch(self, step)

    records.Records.__getitem__ = noted_read
    reader.TrainInput.batch = noted_batch


def note_rows() -> None:
    place, prefetch = mesh_lib.place_batch, reader.TrainInput.prefetch
    current = [0]

    def noted_prefetch(self, *steps):
        for step, batch in prefetch(self, *steps):
            current[0] = step
            yield step, batch

    def noted_place(batch, mesh):
        placed = place(batch, mesh)
        for path, leaf in jax.tree_util.tree_flatten_with_path(placed)[0]:
            rows = ROWS[current[0]].setdefault(jax.tree_util.keystr(path), {})
            for shard in leaf.addressable_shards:
                first = shard.index[0].start or 0
                for offset, row in enumerate(jax.device_get(shard.data)):
                    digest = hashlib.sha256(row.tobytes()).hexdigest()[:16]
                    assert rows.setdefault(first + offset, digest) == digest
        return placed

    mesh_lib.place_batch = noted_place
    reader.TrainInput.prefetch = noted_prefetch


if __name__ == "__main__":
    notes = Path(sys.argv[1])
    note_reads()
    note_rows()
    status = cli.run(train.main, sys.argv[2:])
    notes.mkdir(parents=True, exist_ok=True)
    (notes / f"{jax.process_index()}.json").write_text(
        json.dumps({"reads": READS, "rows": ROWS})
    )
    sys.exit(status)
