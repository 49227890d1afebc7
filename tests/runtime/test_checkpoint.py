import logging

import jax
import jax.numpy as jnp
import optax
import pytest

from medclip_jax.errors import UserError
from medclip_jax.runtime import checkpoint as checkpoint_lib
from medclip_jax.runtime.state import TrainState, replace_leaves

METRIC = "zero_shot/accuracy"


def make_state(value=1.0):
    params = {"a": {"kernel": jnp.full((4, 4), value)}, "b": jnp.zeros(())}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(
        jnp.int32(3),
        {"params": params, "batch_stats": {"m": jnp.ones(3)}},
        tx.init(params),
    )


def target_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save_all(folder, metrics, **options):
    with checkpoint_lib.Checkpoints(folder, METRIC, **options) as checkpoints:
        for step, value in metrics.items():
            measured = {} if value is None else {METRIC: value}
            checkpoints.save(
                step, make_state(float(step)), {"pending": {"loss": 0.1}}, measured
            )
        checkpoints.wait()
        return checkpoints.steps(), checkpoints.best_step()


def test_keeps_the_latest_and_the_best(tmp_path):
    metrics = {1: 0.5, 2: None, 3: 0.1, 4: 0.2, 5: None, 6: 0.3}
    assert save_all(tmp_path, metrics) == ([1, 5, 6], 1)


def test_least_loss_is_best(tmp_path):
    with checkpoint_lib.Checkpoints(tmp_path, "loss", keep_latest=1) as checkpoints:
        for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), start=1):
            checkpoints.save(step, make_state(), {}, {"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]
        assert checkpoints.best_step() == 2


def test_restores_all_types_in_a_fresh_manager(tmp_path, caplog):
    save_all(tmp_path, {2: None})
    state = make_state(2.0)
    caplog.set_level(logging.INFO)
    with checkpoint_lib.Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints:
        restored, meta = checkpoints.restore(2, target_of(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), restored, state))
    assert meta == {"pending": {"loss": 0.1}}
    assert "restored step 2" in caplog.text


def test_lists_every_difference(tmp_path):
    save_all(tmp_path, {2: None})
    wanted = target_of(make_state())
    params = {
        "a": {"kernel": jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)},
        "c": wanted.step,
    }
    wanted = wanted.replace(variables={**wanted.variables, "params": params})
    with checkpoint_lib.Checkpoints(tmp_path, METRIC) as checkpoints:
        for call, part in (
            (checkpoints.restore, wanted),
            (checkpoints.restore_variables, wanted.variables),
        ):
            with pytest.raises(UserError) as error:
                call(2, part)
            message = str(error.value)
            assert "3 differences" in message
            assert "(4, 4), 'float32'" in message
            assert "(4, 5), 'bfloat16'" in message
            assert "params/b: in the checkpoint only" in message
            assert "params/c: missing in it" in message
        with pytest.raises(UserError, match=r"step 7.*there are: \[2\]"):
            checkpoints.restore(7, wanted)


def test_an_unfinished_save_is_not_there(tmp_path):
    save_all(tmp_path, {2: None, 4: None})
    # What a killed process leaves: Orbax renames the folder only when all is written.
    (tmp_path / "4").rename(tmp_path / "4.orbax-checkpoint-tmp")
    with checkpoint_lib.Checkpoints(tmp_path, METRIC) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(4, make_state(), {}, {})
        checkpoints.wait()
        assert checkpoints.latest_step() == 4


def test_replaces_what_fits_and_names_the_rest():
    state = make_state()
    new = {
        "params": {
            "a": {"kernel": jnp.full((4, 4), 7.0)},
            "b": jnp.ones(2),
            "d": 1.0 * jnp.ones(1),
        }
    }
    variables, unfit = replace_leaves(state.variables, new)
    assert (variables["params"]["a"]["kernel"] == 7).all()
    assert variables["params"]["b"].shape == ()
    assert sorted(line.split(":")[0] for line in unfit) == ["params/b", "params/d"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    save_all(tmp_path, {2: 0.5})
    for file in (tmp_path / "2" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    target = target_of(make_state())
    with checkpoint_lib.Checkpoints(tmp_path, METRIC, read_only=True) as checkpoints:
        with pytest.raises(UserError, match="step 2 is damaged.*delete .*2 to go on"):
            checkpoints.restore(2, target)
        with pytest.raises(UserError, match="step 2 is damaged"):
            checkpoints.restore_variables(2, target.variables)


def test_a_run_may_go_on_with_another_best_metric(tmp_path):
    save_all(tmp_path, {1: 0.5})
    with checkpoint_lib.Checkpoints(tmp_path, "loss", keep_latest=1) as checkpoints:
        checkpoints.save(2, make_state(), {}, {"loss": 1.0})
        checkpoints.save(3, make_state(), {}, {"loss": 2.0})
        checkpoints.wait()
        assert checkpoints.best_step() == 2


def test_tells_how_long_saves_held_the_run_up(tmp_path):
    with checkpoint_lib.Checkpoints(tmp_path, "loss") as checkpoints:
        assert checkpoints.blocked_seconds() == 0.0
        checkpoints.save(1, make_state(), {}, {})
        assert 0.0 < checkpoints.blocked_seconds() < 60.0
        assert checkpoints.blocked_seconds() == 0.0
