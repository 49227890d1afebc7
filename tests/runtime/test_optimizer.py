import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medclip_jax.errors import UserError
from medclip_jax.runtime import optimizer

CONFIG = {
    "name": "adamw",
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
    "weight_decay": 0.1,
    "clip_norm": 0.0,
    "b1": 0.9,
    "b2": 0.999,
    "frozen": (),
}


def make_params():
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "image": {"norm": {"scale": array(4), "bias": array(4)}, "kernel": array(3, 4)},
        "text": {"layer_norm": {"scale": array(4)}, "kernel": array(4, 2)},
        "logit_scale": array(),
    }


def run(config, params, steps=3, gradient=None):
    tx, _, _ = optimizer.build(config, 30, params)
    state = tx.init(params)
    for step in range(steps):
        grads = gradient or jax.tree.map(lambda p, s=step: 0.1 * p + 0.01 * s, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_schedule_is_that_of_the_published_trainer():
    """transformers' get_cosine_schedule_with_warmup, which MedCLIP's trainer calls."""
    steps, warmup = 25, math.ceil(0.1 * 25)
    schedule = optimizer.make_schedule(CONFIG, steps)
    for step in range(steps):
        if step < warmup:
            expected = step / warmup
        else:
            turn = math.pi * (step - warmup) / (steps - warmup)
            expected = 0.5 * (1 + math.cos(turn))
        assert float(schedule(step)) == pytest.approx(1e-2 * expected, abs=1e-8)


def test_a_rate_that_falls_in_a_line():
    """transformers' get_linear_schedule_with_warmup: BioViL's and BioViL-T's."""
    config = {**CONFIG, "schedule": "linear", "warmup_fraction": 0.2}
    schedule = optimizer.make_schedule(config, 20)
    found = [float(schedule(step)) for step in (0, 2, 4, 8, 12, 20)]
    np.testing.assert_allclose(found, [0, 5e-3, 1e-2, 7.5e-3, 5e-3, 0], atol=1e-8)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_steps_equal_torch(name):
    torch = pytest.importorskip("torch")
    config = {
        **CONFIG,
        "name": name,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "decay_rules": ((".*", 1.0),),
    }
    params = {"kernel": make_params()["image"]["kernel"]}
    theirs = torch.nn.Parameter(torch.tensor(np.asarray(params["kernel"])))
    kind = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    }[name]
    optim = kind([theirs], lr=1e-2, weight_decay=0.1)
    for step in range(3):
        theirs.grad = 0.1 * theirs.detach() + 0.01 * step
        optim.step()
    ours, _ = run(config, params)
    np.testing.assert_allclose(ours["kernel"], theirs.detach().numpy(), atol=2e-7)


def test_lars():
    """A tensor of each kind, with a velocity of its own, against worked figures."""
    params = {
        "kernel": jnp.array([[0.5, -1], [2, 0.25]]),
        "norm": {"scale": jnp.array([1, 0.5])},
    }
    grads = {
        "kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]),
        "norm": {"scale": jnp.array([0.2, -0.1])},
    }
    velocity = {
        "kernel": jnp.array([[0.01, 0], [0, -0.02]]),
        "norm": {"scale": jnp.array([0, 0.01])},
    }
    config = {
        **CONFIG,
        "name": "lars",
        "learning_rate": 0.3,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "weight_decay": 1e-4,
    }
    tx, _, _ = optimizer.build(config, 30, params)
    *before, trace = tx.init(params)
    trace = trace._replace(trace=jax.tree.map(jnp.negative, velocity))
    updates, state = tx.update(grads, (*before, trace), params)
    found = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        found["kernel"],
        [[0.490873666, -1.000252416], [2.000378561, 0.267494884]],
        atol=1e-6,
    )
    np.testing.assert_allclose(found["norm"]["scale"], [0.94, 0.521], atol=1e-6)
    np.testing.assert_allclose(
        -state[-1].trace["kernel"],
        [[0.009126334, 0.000252416], [-0.000378561, -0.017494884]],
        atol=1e-7,
    )


def test_simclr_s_learning_rate():
    """100 epochs of 1,281,167 films in batches of 4,096, ten of them warm-up."""
    config = {**CONFIG, "learning_rate": 4.8, "warmup_fraction": 3127 / 31279}
    schedule = optimizer.make_schedule(config, 31279)
    for step, expected in ((1, 0.001535), (3126, 4.798465), (15639, 2.816756)):
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_drops_are_counted_from_the_start(warmup):
    config = {
        **CONFIG,
        "schedule": "drops",
        "drops": (0.6, 0.8),
        "warmup_fraction": warmup,
    }
    schedule = optimizer.make_schedule(config, 100)
    found = [float(schedule(step)) for step in (30, 59, 61, 79, 81, 99)]
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_what_is_decayed():
    params = make_params()
    zero = jax.tree.map(jnp.zeros_like, params)
    config = {**CONFIG, "schedule": "constant", "warmup_fraction": 0.0}

    def decayed(**change):
        after, _ = run({**config, **change}, params, 1, zero)
        flat = jax.tree_util.tree_flatten_with_path(
            jax.tree.map(lambda a, b: bool((a != b).any()), params, after)
        )[0]
        return {optimizer.leaf_name(path) for path, moved in flat if moved}

    kernels = {"image/kernel", "text/kernel"}
    assert decayed() == kernels
    # The released trainer decays the temperature and all norms but BERT's.
    official = kernels | {"logit_scale", "image/norm/scale"}
    assert decayed(decay_rules="medclip_official") == official
    only = (("text/.*", 1.0), (".*", 0.0))
    assert decayed(decay_rules=only) == {"text/kernel", "text/layer_norm/scale"}


def test_rules_must_cover_every_parameter():
    with pytest.raises(UserError) as error:
        run({**CONFIG, "decay_rules": (("image/.*", 1.0),)}, make_params())
    assert "text/kernel" in str(error.value)
    assert "logit_scale" in str(error.value)
    assert "image/kernel" not in str(error.value)


def test_frozen_parameters_stay_and_have_no_moments():
    params = make_params()
    config = {**CONFIG, "frozen": ("image/.*",), "clip_norm": 1.0}
    after, state = run(config, params)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), params["image"], after["image"])
    )
    assert not (params["text"]["kernel"] == after["text"]["kernel"]).all()
    trained = 8 + 4 + 1  # kernel, scale, logit_scale; two moments and the counts
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert 2 * trained <= sizes <= 2 * trained + 3


def test_frozen_gradients_do_not_clip_the_rest():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grads = {"a": jnp.full(2, 1e3), "b": jnp.full(2, 0.1)}
    config = {**CONFIG, "name": "adam", "clip_norm": 1.0, "weight_decay": 0.0}
    tx, _, _ = optimizer.build({**config, "frozen": ("a",)}, 30, params)
    _, state = tx.update(grads, tx.init(params), params)
    adam = [
        s
        for s in jax.tree.leaves(state, is_leaf=lambda n: hasattr(n, "mu"))
        if hasattr(s, "mu")
    ]
    np.testing.assert_allclose(adam[0].mu["b"], 0.1 * 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "lamb"}, "adamw"),
        ({"schedule": "step"}, "cosine"),
        ({"frozen": ("imgae/.*",)}, "matches no parameter"),
        ({"frozen": (".*",)}, "nothing to train"),
        ({"frozen": ("(",)}, "no regex"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
        ({"decay_rules": "none"}, "medclip_official"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        optimizer.build({**CONFIG, **change}, 30, make_params())
