"""Every call of Orbax, and the restore contract of the project.

A checkpoint of step S holds `state` (the train state) and `meta` (JSON: what the run
must know to go on, e.g. the metrics of S). A save that was cut short leaves a folder
that Orbax never lists, so it is never picked up.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from medclip_jax.errors import UserError
from medclip_jax.runtime import hosts
from medclip_jax.runtime.sharding import leaf_name

log = logging.getLogger(__name__)

# Metrics of which less is better; of any other, more is.
_MINIMISED = ("loss", "error")


def is_minimised(metric: str) -> bool:
    """Whether a metric's best value is its least, by its name."""
    return any(word in metric for word in _MINIMISED)


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      directory: `WORKDIR/checkpoints`.
      best_metric: name of the metric that ranks checkpoints.
      keep_latest: how many of the newest to keep.
      keep_best: how many of the best to keep besides.
      read_only: neither create nor delete anything.
      seconds: how long the processes of a run wait for each other in a save.
    """

    def __init__(
        self,
        directory: Path | str,
        best_metric: str,
        keep_latest: int = 2,
        keep_best: int = 1,
        read_only: bool = False,
        seconds: float = 1200.0,
    ):
        if keep_latest < 1:
            raise UserError(
                f"checkpoint.keep_latest={keep_latest}: at least 1 is needed to go on "
                "after a stop."
            )
        self.best_metric = best_metric
        # A checkpoint without the metric, of a run that went on with another, is last.
        worst = float("inf") if is_minimised(best_metric) else float("-inf")

        def of_metric(metrics: dict[str, float]) -> float:
            return metrics.get(best_metric, worst)

        self.seconds_blocked = 0.0
        keep = [
            policies.LatestN(keep_latest),
            policies.BestN(
                get_metric_fn=of_metric,
                reverse=is_minimised(best_metric),
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._manager = ocp.CheckpointManager(
            _resolved(directory),
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                preservation_policy=policies.AnyPreservationPolicy(keep),
                save_decision_policy=policies.FixedIntervalPolicy(1),
                best_fn=of_metric,
                best_mode="min" if is_minimised(best_metric) else "max",
                async_options=ocp.AsyncOptions(timeout_secs=int(seconds)),
            ),
            # Named handlers: without them a fresh manager cannot read metadata.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best metric; None where none was measured."""
        ranked = {}
        for step in self.steps():
            metrics = self._manager.metrics(step)
            if metrics and self.best_metric in metrics:
                ranked[step] = metrics[self.best_metric]
        if not ranked:
            return None
        choose = min if is_minimised(self.best_metric) else max
        best = choose(ranked.values())
        return max(step for step, value in ranked.items() if value == best)

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Starts an asynchronous save; blocks only to copy the state to the host.

        Args:
          step: updates done. A step that is already there is left as it is.
          state: the train state.
          meta: JSON data.
          metrics: of this step; the best metric ranks it when it is among them.
        """
        if step in self._manager.all_steps():
            return
        started = time.perf_counter()
        ranked = (
            {self.best_metric: float(metrics[self.best_metric])}
            if (self.best_metric in metrics)
            else None
        )
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
            ),
            metrics=ranked,
            force=True,
        )
        self.seconds_blocked += time.perf_counter() - started
        if not saved:
            raise RuntimeError(f"Orbax refused to save step {step}.")

    def restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a step onto the shardings of `target`.

        Args:
          step: one of `steps()`.
          target: tree of ShapeDtypeStruct with shardings, of the saved structure.

        Returns:
          The state and the meta data.

        Raises:
          UserError: no such step, or names, shapes or dtypes that differ from the
            checkpoint's; all differences are listed.
        """
        self._check_step(step)
        with self._naming_damage(step):
            saved = self._manager.item_metadata(step)["state"]
        _check_same(_leaves(saved), _leaves(target), f"checkpoint of step {step}")
        started = time.perf_counter()
        with self._naming_damage(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                ),
            )
        state = restored["state"]
        _check_real(state)
        _report(step, state, time.perf_counter() - started)
        return state, restored["meta"]

    def restore_variables(self, step: int, target: Any) -> Any:
        """Reads the method's variables alone, whatever the optimizer was.

        Args:
          step: one of `steps()`.
          target: tree of ShapeDtypeStruct with shardings, like `state.variables`.

        Returns:
          The variables.

        Raises:
          UserError: as `restore`.
        """
        self._check_step(step)
        with self._naming_damage(step):
            saved = _leaves(self._manager.item_metadata(step)["state"])
        part = {
            name.removeprefix("variables/"): leaf
            for name, leaf in saved.items()
            if name.startswith("variables/")
        }
        _check_same(part, _leaves(target), f"checkpoint of step {step}")
        started = time.perf_counter()
        with self._naming_damage(step), ocp.PyTreeCheckpointer() as reader:
            restored = reader.restore(
                self._manager.directory / str(step) / "state",
                args=ocp.args.PyTreeRestore(
                    item={"variables": target},
                    restore_args=ocp.checkpoint_utils.construct_restore_args(
                        {"variables": target}
                    ),
                    partial_restore=True,
                ),
            )
        variables = restored["variables"]
        _check_real(variables)
        _report(step, variables, time.perf_counter() - started)
        return variables

    @contextlib.contextmanager
    def _naming_damage(self, step: int) -> Iterator[None]:
        """Names the checkpoint where its files cannot be read."""
        try:
            yield
        except (ValueError, KeyError, OSError) as error:
            if hosts.is_loss(error):
                raise  # a host is gone; the files are as they were
            folder = self._manager.directory / str(step)
            raise UserError(
                f"the checkpoint of step {step} is damaged or an incomplete copy "
                f"({type(error).__name__}): copy it again, or delete {folder} to go on "
                "from an earlier one"
            ) from error

    def delete(self, step: int) -> None:
        """Deletes a step, e.g. to save it again with its metrics."""
        self.wait()
        self._manager.delete(step)

    def wait(self) -> None:
        """Until every save is on disk; raises what went wrong in one."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for every save, then ends; always call it before leaving."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _: object) -> None:
        if not hosts.is_loss(error):  # a save cannot end without the lost one
            self.close()

    def _check_step(self, step: int) -> None:
        if step not in self.steps():
            raise UserError(
                f"No complete checkpoint of step {step} in {self._manager.directory}; "
                f"there are: {self.steps() or 'none'}."
            )


def _resolved(directory: Path | str) -> str:
    """Orbax wants absolute paths; remote ones (gs://) are absolute as they are."""
    text = str(directory)
    return text if "://" in text else str(Path(text).absolute())


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of a tree of arrays, structs or Orbax metadata."""
    tree = getattr(tree, "tree", tree)
    flat = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: hasattr(node, "shape") and hasattr(node, "dtype")
    )[0]
    return {
        leaf_name(path): (tuple(leaf.shape), str(jax.numpy.dtype(leaf.dtype)))
        for path, leaf in flat
    }


def _check_same(saved: dict, wanted: dict, where: str) -> None:
    """Orbax casts dtypes silently and reports one mismatch at a time; we compare."""
    differences = [
        f"{name}: in the checkpoint only" for name in saved if name not in wanted
    ]
    differences += [f"{name}: missing in it" for name in wanted if name not in saved]
    for name in saved.keys() & wanted.keys():
        if saved[name] != wanted[name]:
            differences.append(f"{name}: found {saved[name]}, expected {wanted[name]}")
    if differences:
        raise UserError(
            f"{where} does not fit this config's model and optimizer "
            f"({len(differences)} differences). Use the config that made it "
            "(WORKDIR/config.json), or another workdir:\n  "
            + "\n  ".join(sorted(differences))
        )


def _check_real(tree: Any) -> None:
    """Partial restores leave structs where they found nothing, without an error."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    if absent := [leaf_name(p) for p, x in flat if not isinstance(x, jax.Array)]:
        raise RuntimeError(f"Orbax did not restore {absent}.")


def _report(step: int, tree: Any, seconds: float) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    log.info("restored step %d: %.1f MB in %.1f s", step, size / 1e6, seconds)
