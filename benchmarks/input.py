"""Our input beside a PyTorch DataLoader, and where the time goes.

Command:
  medclip-jax simulate --out DIR --patients 100 --size 256
  medclip-jax prepare --dataset mimic_cxr --raw DIR/mimic-cxr --out DIR/shards
  python -m benchmarks.input --data DIR/shards --config medclip.py:demo

Prints films a second a core (CPU seconds, all threads and workers) of whole batches with
nothing held, and with films and tokens held; each stage of the host work by itself; the
augmentation on this machine's device; and of the peer (benchmarks/input_torch.py): a
DataLoader over the same shards, whose workers decode (with Pillow, or with our decoder),
pad, resize, crop, flip, jitter, warp and normalise. Ours leaves all after the crop to the
device: the ratio "with augmentation" adds that to our side as if the host's cores did it.
Our batches hold tokenised texts and labels too, the peer's films alone. Any shape can be
given: `--image_size 224 --crop_from 256` on films of 512 px is what a large run reads.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax import cli, config_flags
from medclip_jax.inputs import augment, catalog, images, reader
from medclip_jax.inputs.options import DataOptions


def rate(work: Callable[[int], int], seconds: float) -> float:
    """Items a CPU second; `work(k)` does its k-th share and returns how many."""
    done, k, start = 0, 0, time.process_time()
    while time.process_time() - start < seconds or k == 0:
        done += work(k)
        k += 1
    return done / (time.process_time() - start)


def whole_batches(
    datasets: list, options: dict, tokenizer, batch: int, seconds: float
) -> dict[str, float]:
    """Films a second a core in batches without and with what is held in RAM."""

    def work(inputs: reader.TrainInput) -> Callable[[int], int]:
        return lambda step: len(inputs.batch(step)["image_weight_N"])

    cold = reader.TrainInput(
        datasets, {**options, "cache_bytes": 0}, tokenizer, 0, batch
    )
    warm = reader.TrainInput(datasets, options, tokenizer, 0, batch)
    print(warm.describe())
    rates = {"nothing held": rate(work(cold), seconds)}
    for step in range(-(-2 * warm.view.n_images // batch)):  # fill what is held
        warm.batch(step)
    rates["all held"] = rate(work(warm), seconds)
    for name, value in rates.items():
        print(f"{'batches, ' + name:32}{value:10.0f} films/s/core")
    return rates


def stages(datasets: list, options: DataOptions, tokenizer, seconds: float) -> None:
    """Each part of the host work alone."""
    table = catalog.build(datasets, options.train_split, sections=options.sections)
    dataset = datasets[table.image_dataset_I[0]]
    own = np.flatnonzero(table.image_dataset_I == table.image_dataset_I[0])
    rows = table.image_row_I[own]
    films = [dataset.images[int(row)]["film"] for row in rows[:64]]
    shapes = {images.decode_gray(film).shape for film in films}
    sizes = sum(map(len, films)) / len(films) / 1024
    heights = ", ".join(f"{h} x {w}" for h, w in sorted(shapes)[:3])
    print(f"stored films: {heights} ..., {sizes:.0f} KiB each")
    store = reader.TextStore(datasets, table)
    texts = [
        store.read((int(r), int(n)))
        for r, n in zip(table.sentence_report_S[:256], table.sentence_number_S[:256])
    ]

    def one(function: Callable, items: list) -> Callable[[int], int]:
        return lambda k: function(items[k % len(items)]) is not None

    size, source = options.image_size, options.crop_from
    work: dict[str, Callable[[int], int]] = {
        "read and parse a film record": one(lambda r: dataset.images[int(r)], rows),
        "decode in full": one(images.decode_gray, films),
        "decode for training": one(lambda f: images.decode_gray(f, source), films),
        "decode, pad, resize": one(
            lambda f: images.training_film(f, size, source), films
        ),
        "the same, for evaluation": one(
            lambda f: images.evaluation_film(f, size), films
        ),
    }
    if texts:
        work["tokenise sentences"] = lambda k: len(
            tokenizer.encode(texts, options.text_length)["ids_BxT"]
        )
    for name, function in work.items():
        print(f"{name:32}{rate(function, seconds):10.0f} /s/core")


def device(options: DataOptions, batch: int, seconds: float) -> dict[str, float]:
    """Films a second that the default device augments, and normalises."""
    shape = (batch, options.image_size, options.image_size, 1)
    films = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    keys = jax.random.split(jax.random.key(0), batch)
    rates = {}
    for name, function in {
        "augment and normalise": lambda f, k: augment.augment(f, k, options),
        "normalise alone": lambda f, k: augment.normalize(f, 0.5, 0.3),
    }.items():
        compiled = jax.jit(function)
        compiled(films, keys).block_until_ready()
        on_cpu = jax.default_backend() == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        done, start = 0, clock()
        while clock() - start < seconds:
            compiled(films, keys).block_until_ready()
            done += batch
        unit = "/s/core" if on_cpu else f"/s on {jax.devices()[0].device_kind}"
        rates[name] = done / (clock() - start)
        print(f"{name:32}{rates[name]:10.0f} {unit}")
    return rates


def peer(dataset, rows: list[int], settings: dict, batch: int, films: int) -> dict:
    """Films a second a core of the DataLoader, by decoder."""
    rates = {}
    for decoder in ("pillow", "simplejpeg"):
        asked = {
            "dataset": str(dataset.path),
            "rows": rows,
            "decoder": decoder,
            "batch": batch,
            "workers": settings["workers"],
            "films": films,
            "data": settings,
        }
        command = [sys.executable, "-m", "benchmarks.input_torch", "--settings"]
        done = subprocess.run(
            [*command, json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=True
        )
        rates[decoder] = json.loads(done.stdout)["rate"]
        print(f"{'DataLoader, ' + decoder:32}{rates[decoder]:10.0f} films/s/core")
    return rates


def compare(ours: dict, device_rates: dict, theirs: dict) -> None:
    """Prints the ratios."""
    augmenting = device_rates["augment and normalise"]
    for name, value in ours.items():
        both = 1 / (1 / value + 1 / augmenting)
        for decoder, rate_of in theirs.items():
            print(
                f"ratio, {name}, to DataLoader with {decoder}: {value / rate_of:.1f}; "
                f"with augmentation {both / rate_of:.1f}"
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="what `prepare --out` was given")
    parser.add_argument("--config", default="medclip.py:demo")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, help="default: the config's")
    parser.add_argument("--crop_from", type=int, help="default: the config's")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--films", type=int, default=2048, help="that the peer reads")
    args = parser.parse_args(argv)
    config = config_flags.load_config(args.config, [])
    settings = config.data.to_dict()
    for name in ("image_size", "crop_from"):
        if getattr(args, name):
            settings[name] = getattr(args, name)
    options = DataOptions.of(settings)
    datasets = catalog.open_datasets(args.data, options.datasets)
    name = config.model.text.tokenizer
    tokenizer = reader.make_tokenizer(datasets, settings, name)
    ours = whole_batches(datasets, settings, tokenizer, args.batch_size, args.seconds)
    stages(datasets, options, tokenizer, args.seconds)
    augmented = device(options, args.batch_size, args.seconds)
    table = catalog.build(datasets, options.train_split, sections=options.sections)
    first = table.image_dataset_I[0]
    rows = table.image_row_I[table.image_dataset_I == first].tolist()
    theirs = peer(datasets[first], rows, settings, args.batch_size, args.films)
    compare(ours, augmented, theirs)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
