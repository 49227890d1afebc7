"""The PyTorch peer of benchmarks/input.py: a DataLoader over the same shards.

Each worker decodes, pads, resizes, crops, flips, jitters, warps and normalises one film
at a time, as most training code does. Prints films a CPU second of all its processes.
"""

import argparse
import io
import json
import resource

import numpy as np
import torch
from PIL import Image, ImageEnhance

from data_pipelines.records import open_dataset


class Films(torch.utils.data.Dataset):
    """The films of some rows, augmented.

    Args:
      settings: path and rows of the dataset, decoder, and `config.data`.
    """

    def __init__(self, settings: dict):
        self.settings, self.options = settings, settings["data"]
        self.records = None

    def __len__(self) -> int:
        return self.settings["films"]

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.records is None:  # opened by the worker that reads
            self.records = open_dataset(self.settings["dataset"]).images
        rows, size = self.settings["rows"], self.options["image_size"]
        film = self.decode(self.records[rows[index % len(rows)]]["film"])
        side, source = max(size, *film.size), self.options["crop_from"]
        if film.size != (side, side):
            square = Image.new("L", (side, side))
            corner = (side - film.width) // 2, (side - film.height) // 2
            square.paste(film, corner)
            film = square
        if side != source:
            film = film.resize((source, source), Image.Resampling.BILINEAR)
        left, top = torch.randint(0, source - size + 1, (2,)).tolist()
        film = self.augment(film.crop((left, top, left + size, top + size)))
        x = torch.from_numpy(np.array(film)).float() / 255.0
        x = (x - self.options["mean"]) / self.options["std"]
        return x.expand(3, -1, -1)

    def decode(self, data: bytes) -> Image.Image:
        if self.settings["decoder"] == "simplejpeg" and data[:2] == b"\xff\xd8":
            from medclip_jax.inputs.images import decode_gray

            return Image.fromarray(decode_gray(data, self.options["crop_from"]))
        film = Image.open(io.BytesIO(data))
        return film if film.mode == "L" else film.convert("L")

    def augment(self, film: Image.Image) -> Image.Image:
        """Flip, brightness, contrast and one nearest affine, drawn as ours are."""
        aug, draw = self.options["augment"], np.random.default_rng().uniform
        if draw() < aug["flip"]:
            film = film.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for kind in ("brightness", "contrast"):
            if aug[kind] > 0:
                enhance = getattr(ImageEnhance, kind.capitalize())(film)
                film = enhance.enhance(draw(1 - aug[kind], 1 + aug[kind]))
        angle = np.deg2rad(draw(-aug["rotate_degrees"], aug["rotate_degrees"]))
        scale = draw(aug["scale_min"], aug["scale_max"])
        reach = aug["translate"] * film.width
        shift_x, shift_y = np.rint(draw(-reach, reach, 2))
        cos, sin, centre = np.cos(angle) / scale, np.sin(angle) / scale, film.width / 2
        x, y = -centre - shift_x, -centre - shift_y
        matrix = (
            *(cos, sin, cos * x + sin * y + centre),
            *(-sin, cos, -sin * x + cos * y + centre),
        )
        return film.transform(
            film.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
        )


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="JSON, see `Films`")
    settings = json.loads(parser.parse_args().settings)
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Films(settings), settings["batch"], num_workers=settings["workers"]
    )
    started = cpu_seconds()
    done = sum(len(batch) for batch in loader)  # at its end the workers are waited for
    print(json.dumps({"rate": done / (cpu_seconds() - started)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
