"""Films a second and core from large JPEG and DICOM files to shards.

Command:
  python -m benchmarks.prepare

Films of 2500 x 3000 with 12-bit content are simulated (rendered at 1024 px, enlarged,
photon noise added) and written to a temporary folder as 8-bit JPEG (quality 95) and as
DICOM (16 bits allocated, 12 stored, with a window, every other one MONOCHROME1). Then,
in turn in one process and in CPU seconds of the whole process:

  plain    a loop with Pillow (open, gray, Lanczos or bicubic to the short side, JPEG
           95) or with pydicom (pixel_array, modality LUT, VOI LUT, min-max to 8 bits,
           inversion, then the same with Pillow), writing JPEG files;
  convert  what `prepare` does to a film: checks, conversion, JPEG;
  shards   the same with all that a record takes: reading, hash, serialising,
           ArrayRecord.

Medians over the repeats. The films of both ways are compared before: their mean
difference must be below 2 of 255 levels. Exits 1 when `shards` is below --at-least
times `plain` for JPEG or plain DICOM. Compressed DICOM (--compressed) is mostly the
decoder's time, which both ways share.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.hospital_films import random_body, random_case
from data_pipelines import parts, plan
from data_pipelines.findings import EVAL_FIVE
from data_pipelines.hospital.render import render
from data_pipelines.images import film as films
from medclip_jax import cli

WIDTH, HEIGHT = 2500, 3000
RENDERED = 1024
NOISE = 0.5  # of the root of the value: gives JPEG files of 1.4 MB
SHORT_SIDE = 512
TOLERANCE = 2.0
COMPRESSED = ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless")


def make_film(seed: int) -> np.ndarray:
    """A film with 12-bit content, uint16 [HEIGHT, WIDTH].

    The noise grows with the root of the value, as that of counted photons does.
    """
    rng = np.random.default_rng(seed)
    case = random_case(rng, EVAL_FIVE[seed % len(EVAL_FIVE)])
    view = "AP" if seed % 2 else "PA"
    small = render(random_body(rng), case, view, RENDERED, seed).pixels_HxW
    large = Image.fromarray(small.astype(np.float32)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    values = 200 + 14 * np.clip(np.asarray(large), 0, 255)
    values += NOISE * np.sqrt(values) * rng.standard_normal(values.shape)
    return np.clip(np.round(values), 0, 4095).astype(np.uint16)


def write_jpeg(path: Path, values_HxW: np.ndarray, seed: int, syntax: str) -> None:
    """The film's upper eight bits as JPEG; `syntax` and `seed` are of no meaning."""
    del seed, syntax
    Image.fromarray((values_HxW >> 4).astype(np.uint8)).save(path, "JPEG", quality=95)


def write_dicom(path: Path, values_HxW: np.ndarray, seed: int, syntax: str) -> None:
    """A DICOM file; `syntax` is a keyword of pydicom.uid."""
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.3.{seed}")
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID = meta.MediaStorageSOPClassUID
    made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    made.Rows, made.Columns = values_HxW.shape
    made.SamplesPerPixel = 1
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = 0
    made.WindowCenter, made.WindowWidth = 1900, 3300
    turned = seed % 2 == 1
    made.PhotometricInterpretation = "MONOCHROME1" if turned else "MONOCHROME2"
    made.PixelData = (4095 - values_HxW if turned else values_HxW).tobytes()
    made["PixelData"].VR = "OW"
    if syntax != "ExplicitVRLittleEndian":
        made.compress(getattr(uid, syntax), generate_instance_uid=False)
    made.save_as(path, enforce_file_format=True)


def plain_pillow(path: Path) -> Image.Image:
    return Image.open(path).convert("L")


def plain_pydicom(path: Path) -> Image.Image:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    made = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(made.pixel_array, made), made)
    values = values - values.min()
    gray = (values * (255.0 / values.max())).round().astype(np.uint8)
    if made.PhotometricInterpretation == "MONOCHROME1":
        gray = 255 - gray
    return Image.fromarray(gray)


Opener = Callable[[Path], Image.Image]
Writer = Callable[[Path, np.ndarray, int, str], None]
BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS


def plain(paths: list[Path], opener: Opener, out: Path, resampling: int) -> None:
    """The loop that people write: one JPEG file a film."""
    for path in paths:
        image = opener(path)
        height, width = films.target_size(image.height, image.width, SHORT_SIDE)
        image = image.resize((width, height), resampling)
        image.save(out / f"{path.stem}.jpg", "JPEG", quality=95)


def convert(paths: list[Path]) -> None:
    for path in paths:
        films.convert(path.read_bytes(), SHORT_SIDE)


def shards(paths: list[Path], out: Path, index: int) -> None:
    """Writes one part, as a worker of `prepare` does."""
    items = [
        plan.FilmPlan(path.stem, path.stem, path.stem, "train", path.name)
        for path in paths
    ]
    (out / "plan").write_text("".join(plan.to_json(item) + "\n" for item in items))
    job = parts.Job(
        kind="images",
        split="train",
        index=index,
        plan=str(out / "plan"),
        out=str(out / f"part-{index}"),
        raw=str(paths[0].parent),
        dataset="benchmark",
        size=SHORT_SIDE,
    )
    parts.write_part(job)
    part = parts.load_part(job)
    if part is None or part.records != len(paths):
        raise RuntimeError(f"expected a part of {len(paths)} records, found {part}")


def compare(path: Path, opener: Opener, out: Path, resampling: int) -> float:
    """Mean difference of the two ways' films, 8-bit levels."""
    plain([path], opener, out, resampling)
    theirs = np.asarray(Image.open(out / f"{path.stem}.jpg"), np.float32)
    stored = films.convert(path.read_bytes(), SHORT_SIDE)
    ours = simplejpeg.decode_jpeg(stored.jpeg, "GRAY")[..., 0]
    return float(np.abs(ours - theirs).mean())


def measure(
    paths: list[Path], opener: Opener, out: Path, resampling: int, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Times the three ways in turn.

    Returns:
      CPU seconds a film of each way, medians over the repeats; and how many times
      those of `plain` contain those of the others, medians of the ratio within a
      repeat. `plain` and `convert` take turns film by film, so that what else the
      machine does meets both.
    """
    seconds: dict[str, list[float]] = {"plain": [], "convert": [], "shards": []}
    for repeat in range(repeats + 1):  # the first warms up
        spent = dict.fromkeys(seconds, 0.0)

        def timed(way: str, work: Callable[[], None], spent: dict = spent) -> None:
            start = time.process_time()
            work()
            spent[way] += time.process_time() - start

        for path in paths:
            timed("plain", partial(plain, [path], opener, out, resampling))
            timed("convert", partial(convert, [path]))
        timed("shards", partial(shards, paths, out, repeat))
        for way, value in spent.items():
            seconds[way].append(value / len(paths))
    kept = {way: values[1:] for way, values in seconds.items()}
    ratios = {
        way: statistics.median(
            slow / fast for slow, fast in zip(kept["plain"], values, strict=True)
        )
        for way, values in kept.items()
    }
    return {way: statistics.median(values) for way, values in kept.items()}, ratios


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=int, default=8, help="different films")
    parser.add_argument("--repeats", type=int, default=7, help="after a first one")
    parser.add_argument(
        "--compressed", action="store_true", help="also RLE, JPEG-LS, JPEG 2000 DICOM"
    )
    parser.add_argument(
        "--at-least", type=float, default=2.0, help="ratio to reach (0: only print)"
    )
    args = parser.parse_args(argv)
    plain_syntax = "ExplicitVRLittleEndian"
    kinds: list[tuple[str, Writer, Opener, str, int]] = [
        ("JPEG, Lanczos", write_jpeg, plain_pillow, "", LANCZOS),
        ("JPEG, bicubic", write_jpeg, plain_pillow, "", BICUBIC),
        ("DICOM, bicubic", write_dicom, plain_pydicom, plain_syntax, BICUBIC),
    ]
    for syntax in COMPRESSED if args.compressed else ():
        kinds.append((f"DICOM {syntax}", write_dicom, plain_pydicom, syntax, BICUBIC))
    print(f"making {args.films} films of {WIDTH} x {HEIGHT}", flush=True)
    made = [make_film(seed) for seed in range(args.films)]
    print(f"{'':24}{'MB':>6}{'plain':>9}{'convert':>9}{'shards':>9}  films/s/core")
    slow = []
    for kind, write, opener, syntax, resampling in kinds:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            out = root / "out"
            out.mkdir()
            paths = [root / f"film{seed}" for seed in range(args.films)]
            for seed, path in enumerate(paths):
                write(path, made[seed], seed, syntax)
            size = statistics.mean(path.stat().st_size for path in paths) / 1e6
            difference = max(
                compare(path, opener, out, resampling) for path in paths[:2]
            )
            if difference > TOLERANCE:
                raise RuntimeError(
                    f"{kind}: the two ways differ by {difference:.1f} levels in the "
                    f"mean, expected at most {TOLERANCE}; the figures mean nothing"
                )
            seconds, ratios = measure(paths, opener, out, resampling, args.repeats)
        rates = "".join(f"{1 / seconds[way]:9.1f}" for way in seconds)
        print(
            f"{kind:24}{size:6.1f}{rates}  convert {ratios['convert']:.2f}x, shards "
            f"{ratios['shards']:.2f}x plain; they differ by {difference:.2f} levels",
            flush=True,
        )
        if ratios["shards"] < args.at_least and syntax not in COMPRESSED:
            slow.append(kind)
    if slow:
        print(f"below {args.at_least}x: {', '.join(slow)}")
    return int(bool(slow))


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
