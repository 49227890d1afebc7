"""Every call of Orbax, and the restore contract of the project.

A checkpoint of step S holds `state` (the train state) and `meta` (JSON: what the run
must know to go on, e.g. the metrics of S, and the checksum of each array of the state).
A save that was cut short leaves a folder that Orbax never lists, so it is never picked
up; one that was damaged afterwards is refused by name.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from medclip_jax import storage
from medclip_jax.errors import TryAgain, UserError, causes, passing
from medclip_jax.runtime import checksum, contract, hosts

log = logging.getLogger(__name__)

# Metrics of which less is better; of any other, more is.
_MINIMISED = ("loss", "error")


def is_minimised(metric: str) -> bool:
    """Whether a metric's best value is its least, by its name."""
    return any(word in metric for word in _MINIMISED)


def quiet_failures() -> None:
    """Leaves out what Orbax prints of a save that failed, for the whole process: the
    traces of its threads, and TensorStore's of an event loop that is gone. The error
    itself is raised in the thread that saves."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook


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
        self._directory = storage.path(_resolved(directory))
        self._saving = ""
        self._check_metrics()
        # A checkpoint without the metric, of a run that went on with another, is last.
        worst = float("inf") if is_minimised(best_metric) else float("-inf")

        def of_metric(metrics: dict[str, float]) -> float:
            return metrics.get(best_metric, worst)

        self._seconds_blocked = 0.0
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
            self._directory,
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

        Raises:
          NonFinite: the state holds NaN or infinity; nothing was saved.
          UserError: there is no room for the save before this one, or for this one.
        """
        started = time.perf_counter()
        self.wait()
        if step in self._manager.all_steps():
            return
        sealed = contract.seal(dict(meta), checksum.of(state))
        ranked = (
            {self.best_metric: float(metrics[self.best_metric])}
            if (self.best_metric in metrics)
            else None
        )
        n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        self._saving = f"A checkpoint takes up to {n_bytes / 1e6:.1f} MB"
        with self._naming_full_disk():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(sealed)
                ),
                metrics=ranked,
                force=True,
            )
        self._seconds_blocked += time.perf_counter() - started
        if not saved:
            raise RuntimeError(f"Orbax refused to save step {step}.")

    def blocked_seconds(self) -> float:
        """How long saves held the run up since the last call."""
        seconds, self._seconds_blocked = self._seconds_blocked, 0.0
        return seconds

    def restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a step onto the shardings of `target`.

        Args:
          step: one of `steps()`.
          target: tree of ShapeDtypeStruct with shardings, of the saved structure.

        Returns:
          The state and the meta data.

        Raises:
          UserError: no such step; one whose files are damaged, or of an older version;
            or names, shapes or dtypes that differ from the checkpoint's, and all
            differences are listed.
          TryAgain: its files cannot be read now.
        """
        meta, sums, saved = self._described(step)
        contract.check_same(
            saved, contract.leaves(target), f"checkpoint of step {step}"
        )
        started = time.perf_counter()
        with self._naming_damage(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )
        state = restored["state"]
        contract.check_real(state)
        self._check_sums(step, state, sums)
        contract.report(step, state, time.perf_counter() - started)
        return state, meta

    def restore_variables(self, step: int, target: Any) -> Any:
        """Reads the method's variables alone, whatever the optimizer was.

        Args:
          step: one of `steps()`.
          target: tree of ShapeDtypeStruct with shardings, like `state.variables`.

        Returns:
          The variables.

        Raises:
          UserError, TryAgain: as `restore`.
        """
        _, sums, saved = self._described(step)
        part = contract.variables(saved)
        contract.check_same(part, contract.leaves(target), f"checkpoint of step {step}")
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
        contract.check_real(variables)
        self._check_sums(step, variables, contract.variables(sums))
        contract.report(step, variables, time.perf_counter() - started)
        return variables

    def _described(self, step: int) -> tuple[dict, dict[str, int], dict]:
        """Meta data, checksums, and name -> (shape, dtype) of a checkpoint's arrays."""
        if step not in self.steps():
            raise UserError(
                f"No complete checkpoint of step {step} in {self._directory}; "
                f"there are: {self.steps() or 'none'}."
            )
        with self._naming_damage(step):
            found = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            meta, sums = contract.unseal(
                found["meta"], f"the checkpoint of step {step} in {self._directory}"
            )
            saved = contract.leaves(self._manager.item_metadata(step)["state"])
            if saved.keys() != sums.keys():
                raise ValueError("its list of arrays is not the one that was saved")
        return meta, sums, saved

    def _check_sums(self, step: int, tree: Any, sums: Mapping[str, int]) -> None:
        if bad := checksum.differing(tree, sums):
            raise self._damaged(
                step, f"not what was saved: {', '.join(bad[:5])}, {len(bad)} in all"
            )

    @contextlib.contextmanager
    def _naming_damage(self, step: int) -> Iterator[None]:
        """Names the checkpoint where its files cannot be read, and says that they are
        damaged where that is so: the readers' errors are of nearly every kind."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            ours = (MemoryError, jax.errors.JaxRuntimeError)
            if any(isinstance(cause, ours) for cause in causes(error)):
                raise  # a host is gone or memory ran out; the files are as they were
            if reason := passing(error):
                raise TryAgain(
                    f"the checkpoint of step {step} in {self._directory} could not be "
                    f"read now ({_brief(reason)}): look after the disk, mount or "
                    "bucket, or this account's right to read it, then start the same "
                    "command again"
                ) from error
            raise self._damaged(step, _brief(error)) from error

    def _damaged(self, step: int, why: str) -> UserError:
        earlier = [before for before in self.steps() if before < step]
        then = f"from step {earlier[-1]}" if earlier else "from the beginning"
        return UserError(
            f"the checkpoint of step {step} is damaged or an incomplete copy "
            f"({why}): copy it again, or delete "
            f"{self._directory / str(step)} to go on {then}"
        )

    def _check_metrics(self) -> None:
        """Orbax reads the metrics of all steps at once, and names none that is cut."""
        if not self._directory.is_dir():
            return
        for folder in self._directory.iterdir():
            file = folder / "metrics" / "metrics"
            if folder.name.isdigit() and file.exists():
                try:
                    json.loads(file.read_text())
                except ValueError as error:
                    raise UserError(
                        f"{file}, the metrics of a checkpoint, is damaged ({error}): "
                        "copy it again, or delete that file; the checkpoint then has "
                        "no rank among the best"
                    ) from error

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ranks a step that was saved before it was measured; in one process of a run.

        Args:
          step: one of `steps()`.
          metrics: of it, the best metric among them.
        """
        if self.best_metric not in metrics:
            return
        file = self._directory / str(step) / "metrics" / "metrics"
        storage.make_folder(file.parent)
        ranked = {self.best_metric: float(metrics[self.best_metric])}
        storage.write_text(file, json.dumps(ranked))

    def reload(self) -> None:
        """Reads the steps and their metrics again; in every process of a run."""
        self._manager.reload()

    @contextlib.contextmanager
    def _naming_full_disk(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            whole = [n for n in self.steps() if (self._directory / str(n)).exists()]
            steps = (
                f"those of the steps {whole} are whole" if whole else "none is whole"
            )
            with storage.naming_full_disk(self._directory, f"{self._saving}; {steps}"):
                raise

    def wait(self) -> None:
        """Until every save is on disk; raises what went wrong in one.

        Raises:
          UserError: there was no room for it.
        """
        with self._naming_full_disk():
            self._manager.wait_until_finished()

    def raise_failed(self) -> None:
        """As `wait`, but returns at once while a save is under way."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for every save, then ends; always call it before leaving."""
        with self._naming_full_disk():
            self._manager.wait_until_finished()
            self._manager.close()  # raises once more what was raised already

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _: object) -> None:
        if hosts.is_loss(error):  # a save cannot end without the lost one
            return
        try:
            self.close()
        except Exception as second:
            if error is None:
                raise
            log.error("the last save failed: %s", str(second).splitlines()[0])


def _brief(error: BaseException) -> str:
    line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return line.partition(" [tensorstore_spec=")[0][:600]  # the reason is at its end


def _resolved(directory: Path | str) -> str:
    """Orbax wants absolute paths; remote ones (gs://) are absolute as they are."""
    text = str(directory)
    return text if "://" in text else str(Path(text).absolute())
