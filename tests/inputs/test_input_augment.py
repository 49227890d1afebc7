import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medclip_jax.errors import UserError
from medclip_jax.inputs import augment
from medclip_jax.inputs.options import Augment, DataOptions

ROOT = Path(__file__).parent.parent.parent
ONE = 2**augment.FRACTION_BITS
OFF = Augment()
FULL = Augment(
    flip=0.5,
    brightness=0.2,
    contrast=0.2,
    rotate_degrees=10.0,
    translate=0.0625,
    scale_min=0.8,
    scale_max=1.1,
)


run = jax.jit(augment.augment, static_argnums=2)
warp = jax.jit(augment.warp, static_argnums=2)
draw_parameters = jax.jit(augment.draw_parameters, static_argnums=(1, 2))


def options(**changes) -> DataOptions:
    return DataOptions(
        augment=dataclasses.replace(OFF, **changes), mean=0.0, std=1 / 255
    )


def films(n: int = 6, size: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(1, 256, (n, 8, 8), dtype=np.uint8)
    big = [
        np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.BICUBIC))
        for f in coarse
    ]
    return np.stack(big)[..., None]


def keys(n: int, seed: int = 0) -> jax.Array:
    fold = functools.partial(jax.random.fold_in, jax.random.key(seed))
    return jax.vmap(fold)(jnp.arange(n))


def quantised(degrees, scale) -> tuple[np.ndarray, np.ndarray]:
    """Cosine / scale and sine / scale of the units that the warp counts in."""
    angle = np.deg2rad(degrees)
    return np.rint(np.cos(angle) / scale * ONE), np.rint(np.sin(angle) / scale * ONE)


def draws(n: int, degrees=0.0, scale=1.0, **values) -> augment.Draws:
    cos, sin = quantised(degrees, scale)
    base = {
        "flip": False,
        "brightness": 1.0,
        "contrast": 1.0,
        "contrast_first": False,
        "blur_sigma": 0.0,
    }
    whole = {"cos": cos, "sin": sin, "shift_x": 0, "shift_y": 0}
    for name in whole.keys() & values.keys():
        whole[name] = values.pop(name)
    full = base | values | {k: np.asarray(v, np.int32) for k, v in whole.items()}
    return augment.Draws(
        **{k: jnp.asarray(np.broadcast_to(v, (n,))) for k, v in full.items()}
    )


def test_nothing_is_done_and_nothing_computed_when_all_is_off():
    batch = films()
    config = dataclasses.replace(DataOptions(), augment=OFF)
    out = augment.augment(batch, keys(6), config)
    expected = augment.normalize(batch, config.mean, config.std)
    np.testing.assert_array_equal(out, expected)
    traced = str(jax.make_jaxpr(run, static_argnums=2)(batch, keys(6), config))
    assert not any(word in traced for word in ("random", "gather", "threefry"))
    augmented = str(
        jax.make_jaxpr(run, static_argnums=2)(batch, keys(6), DataOptions(augment=FULL))
    )
    assert "random" in augmented and "gather" in augmented


def test_normalize_is_the_formula():
    batch = films()
    out = np.asarray(augment.normalize(batch, 0.6, 0.3))
    assert out.shape == (6, 40, 40, 3)
    expected = (batch.astype(np.float64) / 255 - 0.6) / 0.3
    np.testing.assert_allclose(out, np.repeat(expected, 3, axis=-1), atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_each_example_depends_on_its_own_key_alone(interpolation):
    config = DataOptions(augment=dataclasses.replace(FULL, interpolation=interpolation))
    batch = films()
    whole = run(batch, keys(6), config)
    for row in range(3):
        alone = run(batch[row : row + 1], keys(6)[row : row + 1], config)
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-5)
    same_film = run(batch[:1].repeat(6, 0), keys(6), config)
    assert len({np.asarray(film).tobytes() for film in same_film}) == 6


def test_draws_stay_in_their_ranges_and_fill_them():
    drawn = draw_parameters(keys(4000), FULL, 224)
    found = {name: np.asarray(value) for name, value in drawn._asdict().items()}
    found["degrees"] = np.rad2deg(np.arctan2(found["sin"], found["cos"]))
    found["scale"] = ONE / np.hypot(found["sin"], found["cos"])
    ranges = {
        "brightness": (0.8, 1.2),
        "contrast": (0.8, 1.2),
        "degrees": (-10, 10),
        "scale": (0.8, 1.1),
        "shift_x": (-14, 14),
        "shift_y": (-14, 14),
    }
    for name, (low, high) in ranges.items():
        values = found[name]
        assert low - 1e-4 <= values.min() <= low + 0.02 * (high - low), name
        assert high + 1e-4 >= values.max() >= high - 0.02 * (high - low), name
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low), name
    assert drawn.shift_x.dtype == drawn.shift_y.dtype == jnp.int32
    for name in ("flip", "contrast_first"):
        assert 0.46 < found[name].mean() < 0.54
    independent = [*ranges, "flip", "contrast_first"]
    columns = np.stack([found[name].astype(float) for name in independent])
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.07


@pytest.mark.parametrize("others", [{}, {"rotate_degrees": 1e-6}])
def test_flip_mirrors_left_and_right(others):
    """By a copy, and by the index of the warp: the same."""
    batch = films()
    out = run(batch, keys(6), options(flip=1.0, **others))
    np.testing.assert_allclose(out[..., 0], batch[:, :, ::-1, 0], atol=1e-3)


def _pillow_warp(film, degrees, shift_x, shift_y, scale, resample):
    """What torchvision's RandomAffine asks of Pillow, at the quantised rotation."""
    size = film.shape[0]
    centre = size * 0.5
    a, b = (part / ONE for part in quantised(degrees, scale))
    matrix = [a, b, 0.0, -b, a, 0.0]
    matrix[2] = centre + a * (-centre - shift_x) + b * (-centre - shift_y)
    matrix[5] = centre - b * (-centre - shift_x) + a * (-centre - shift_y)
    image = Image.fromarray(film)
    return np.asarray(
        image.transform(image.size, Image.Transform.AFFINE, matrix, resample)
    )


WARPS = {
    "degrees": np.array([0.0, 7.0, -10.0, 3.0, 45.0, 0.0]),
    "shift_x": np.array([0, 2, -1, 0, 3, -2]),
    "shift_y": np.array([1, 0, -2, 0, 1, 2]),
    "scale": np.array([1.0, 1.1, 0.8, 0.9, 1.0, 1.07]),
}


def test_nearest_warp_is_pillow_s():
    batch = films(6, 64)[..., 0]
    out = warp(jnp.asarray(batch), draws(6, **WARPS), OFF)
    for row in range(6):
        args = [WARPS[k][row] for k in ("degrees", "shift_x", "shift_y", "scale")]
        expected = _pillow_warp(batch[row], *args, Image.Resampling.NEAREST)
        # Pillow counts in 16.16 fixed point: a few pixels fall to the other side.
        assert (np.asarray(out[row]) != expected).mean() < 0.004, row
        assert (expected == 0).mean() < 0.4


def test_bilinear_warp_is_scipy_s():
    batch = films(6, 48)[..., 0]
    aug = Augment(interpolation="bilinear")
    out = warp(jnp.asarray(batch), draws(6, **WARPS), aug)
    for row in range(6):
        rotation = quantised(WARPS["degrees"][row], WARPS["scale"][row])
        cos, sin = (part / ONE for part in rotation)
        matrix = np.array([[cos, -sin], [sin, cos]])
        centre = np.full(2, (48 - 1) / 2)
        shift = np.array([WARPS["shift_y"][row], WARPS["shift_x"][row]])
        expected = ndimage.affine_transform(
            batch[row].astype(float),
            matrix,
            centre - matrix @ (centre + shift),
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_allclose(out[row], expected, atol=0.02)


def test_fixed_point_rotation_is_cosine_and_sine_over_scale():
    angles, scales = np.linspace(-np.pi, np.pi, 401), np.geomspace(0.02, 4, 401)
    angle_at, scale_at = np.meshgrid(np.arange(401), np.arange(401))
    found = jax.jit(lambda a, s: augment.fixed_point_rotation(a, s, angles, scales))(
        angle_at.ravel(), scale_at.ravel()
    )
    angle, scale = angles[angle_at.ravel()], scales[scale_at.ravel()]
    for got, values in zip(found, (np.cos(angle), np.sin(angle)), strict=True):
        assert got.dtype == jnp.int32
        apart = np.abs(np.asarray(got) - values / scale * ONE)
        assert (apart <= 1 / (2 * scale) + 1.01).all()


@pytest.mark.parametrize("size", [1024, 225])
def test_coordinates_are_exact_and_never_overflow(size):
    """Against Python's own integers, at the ends of wide ranges."""
    aug = Augment(rotate_degrees=180.0, translate=1.0, scale_min=0.2)
    augment._check_int32(aug, size)
    drawn = draws(
        4,
        degrees=np.array([45.0, -135.0, 180.0, 10.0]),
        scale=0.2,
        shift_x=np.array([size, -size, size, 3]),
        shift_y=np.array([-size, -size, size, 1]),
    )
    got_y, got_x = jax.jit(augment.source_coordinates, static_argnums=1)(drawn, size)
    cos, sin, shift_x, shift_y = (
        np.asarray(v, np.int64)[:, None, None]
        for v in (drawn.cos, drawn.sin, drawn.shift_x, drawn.shift_y)
    )
    at = 2 * np.arange(size, dtype=np.int64) + 1 - size
    x, y = at[None, None, :] - 2 * shift_x, at[None, :, None] - 2 * shift_y
    assert got_y.dtype == got_x.dtype == jnp.int32
    np.testing.assert_array_equal(got_y, cos * y - sin * x + size * ONE)
    np.testing.assert_array_equal(got_x, cos * x + sin * y + size * ONE)


def test_a_warp_beyond_int32_is_refused():
    with pytest.raises(UserError, match="image_size"):
        augment.draw_parameters(keys(1), Augment(translate=1.0, scale_min=0.1), 1024)
    with pytest.raises(UserError, match="scale_min"):
        augment.draw_parameters(keys(1), Augment(scale_min=0.005), 8)


def warp_digests() -> dict[str, str]:
    """Of the nearest warp: by one call, compiled or not, and split over devices.

    With the coordinates, since few of their last bits move a pixel.
    """
    size = 96
    aug = dataclasses.replace(FULL, brightness=0.0, contrast=0.0)
    batch = jnp.asarray(films(64, size)[..., 0])

    def draw_and_warp(films_BxHxW, keys_B):
        drawn = augment.draw_parameters(keys_B, aug, size)
        coordinates = augment.source_coordinates(drawn, size)
        return augment.warp(films_BxHxW, drawn, aug), coordinates

    def digest(out) -> str:
        parts = [np.asarray(part).tobytes() for part in jax.tree.leaves(out)]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    split = jax.device_put((batch, keys(64)), rows)
    return {
        "eager": digest(draw_and_warp(batch, keys(64))),
        "jit": digest(jax.jit(draw_and_warp)(batch, keys(64))),
        f"{jax.device_count()} devices": digest(jax.jit(draw_and_warp)(*split)),
    }


def test_nearest_warp_is_the_same_to_the_bit_however_compiled():
    here = warp_digests()
    assert len(set(here.values())) == 1, here
    code = (
        "import json; from tests.inputs import test_input_augment as t; "
        "print(json.dumps(t.warp_digests()))"
    )
    devices = "--xla_force_host_platform_device_count=8"
    for flags in (devices, f"{devices} --xla_backend_optimization_level=0"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        there = json.loads(done.stdout.splitlines()[-1])
        assert "8 devices" in there
        assert set(there.values()) == set(here.values()), (flags, there, here)


def test_positive_angles_turn_clockwise():
    film = np.zeros((1, 41, 41), np.uint8)
    film[0, 20, 25:] = 200  # an arm to the right
    out = np.asarray(warp(jnp.asarray(film), draws(1, degrees=90.0), OFF))[0]
    assert out[25:, 20].mean() > 100 and out[:16, 20].sum() == 0


def test_brightness_and_contrast_in_either_order():
    batch = films(2)[..., 0].astype(np.float64)
    drawn = draws(
        2, brightness=1.2, contrast=0.8, contrast_first=np.array([False, True])
    )
    aug = Augment(brightness=0.2, contrast=0.2)
    out = np.asarray(augment._flip_only(jnp.asarray(batch, jnp.uint8), drawn, aug))

    def bright(x):
        return np.clip(x * 1.2, 0, 255)

    def contrast(x):
        return np.clip(x.mean() + 0.8 * (x - x.mean()), 0, 255)

    np.testing.assert_allclose(out[0], contrast(bright(batch[0])), atol=1e-3)
    np.testing.assert_allclose(out[1], bright(contrast(batch[1])), atol=1e-3)
    assert np.abs(contrast(bright(batch[0])) - bright(contrast(batch[0]))).max() > 1


def test_jitter_before_the_warp_leaves_the_outside_black():
    batch = films(3)
    config = options(brightness=0.2, contrast=0.2, translate=0.5)
    out = np.asarray(run(batch, keys(3), config))[..., 0]
    still = np.asarray(run(batch, keys(3), options(brightness=0.2, contrast=0.2)))[
        ..., 0
    ]
    shift = draw_parameters(keys(3), config.augment, 40)
    for row in range(3):
        dx, dy = int(shift.shift_x[row]), int(shift.shift_y[row])
        expected = np.zeros((40, 40), np.float32)
        ys, xs = slice(max(dy, 0), 40 + min(dy, 0)), slice(max(dx, 0), 40 + min(dx, 0))
        source = still[row][
            max(-dy, 0) : 40 - max(dy, 0), max(-dx, 0) : 40 - max(dx, 0)
        ]
        expected[ys, xs] = source
        np.testing.assert_allclose(out[row], expected, atol=1e-3)
        assert (expected == 0).any()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_blur_is_scipy_s_gaussian(sigma):
    batch = films(2)[..., 0].astype(np.float32)
    out = jax.jit(augment.blur)(jnp.asarray(batch), jnp.full((2,), sigma))
    for row in range(2):
        expected = ndimage.gaussian_filter(
            batch[row].astype(float), sigma, mode="mirror", truncate=8
        )
        np.testing.assert_allclose(out[row], expected, atol=0.05)


def test_no_blur_is_no_change():
    batch = films(2)[..., 0].astype(np.float32)
    np.testing.assert_allclose(augment.blur(batch, jnp.zeros(2)), batch, atol=1e-3)
