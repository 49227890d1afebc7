"""How many processes a run has, and where they meet: options, environment, cluster.

Clusters are those that jax itself detects (`jax.distributed.initialize`); here it is
only decided whether to ask it, and said what was found when that goes wrong.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax

from medclip_jax.errors import UserError

# In the order that jax looks in: the name, what jax wants to see before it takes the
# coordinator's address from there, how many processes, and which one this is.
_CLUSTERS = (
    (
        "Open MPI",
        ("OMPI_MCA_orte_hnp_uri",),
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_RANK",
    ),
    (
        "SLURM",
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"),
        # Inside an allocation the second may be that of the job.
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "SLURM_PROCID",
    ),
)
_PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
OPTIONS = ("--coordinator", "--num_processes", "--process_id")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What says that a run has several processes.

    Attributes:
      source: where it was found, for messages.
      coordinator: HOST:PORT of process 0; None where jax takes it from the cluster.
      count: of processes; None where jax asks the cluster.
      index: of this process; None where jax asks the cluster.
      gpus: which of the visible GPUs this process takes; None leaves it to jax.
    """

    source: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    gpus: tuple[int, ...] | None = None


def find(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Settings | None:
    """Looks for other processes: in the options, the environment, the cluster.

    Each of address, count and index is taken from the first that has it: our options,
    the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then
    Open MPI and SLURM as jax knows them; on a Cloud TPU, jax asks for all three.

    Args:
      environ: of this process.
      coordinator, num_processes, process_id: options; None where not given.

    Returns:
      What was found; None where this process is alone.

    Raises:
      UserError: a part of it only, or numbers that cannot be.
    """
    options = dict(zip(OPTIONS, (coordinator, num_processes, process_id), strict=True))
    named = [name for name, value in options.items() if value is not None]
    named += [name for name in _PLAIN if environ.get(name)]
    cluster = _cluster(environ)
    if not named and cluster is None:
        return _on_a_tpu_pod(environ)
    if not named and cluster is not None and cluster.count == 1:
        return None
    address = coordinator or environ.get(_PLAIN[0])
    count = _number(environ, _PLAIN[1]) if num_processes is None else num_processes
    index = _number(environ, _PLAIN[2]) if process_id is None else process_id
    has_address = bool(address)
    if cluster is not None:
        named.append(cluster.source)
        has_address = has_address or cluster.has_address
        count = cluster.count if count is None else count
        index = cluster.index if index is None else index
    source = ", ".join(named)
    if not has_address or count is None or index is None:
        missing = [
            f"{option} or {variable} ({what})"
            for option, variable, what, found in zip(
                OPTIONS,
                _PLAIN,
                ("HOST:PORT of process 0", "how many there are", "0 for the first"),
                (has_address, count is not None, index is not None),
                strict=True,
            )
            if not found
        ]
        raise UserError(
            f"several processes: found {source}; missing: {', '.join(missing)}. Give "
            "all three, start with srun (SLURM), or add --one_process to run alone."
        )
    if not 0 <= index < count:
        raise UserError(
            f"several processes: found {source}: index {index} of {count}; expected "
            "an index from 0 on, below the count."
        )
    if address and not re.fullmatch(r".+:\d+", address):
        raise UserError(
            f"several processes: the coordinator is {address!r}; expected HOST:PORT of "
            "process 0, with a free port, such as node1:9911."
        )
    return Settings(source, address or None, count, index, _gpus(environ))


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """A variable that counts processes; None where it is not set.

    Raises:
      UserError: it is set, to no number.
    """
    text = environ.get(name)
    try:
        return int(text) if text else None
    except ValueError:
        raise UserError(f"{name}={text}: expected a number of processes.") from None


@dataclasses.dataclass(frozen=True)
class _Cluster:
    source: str
    has_address: bool  # whether jax finds the coordinator in the environment
    count: int
    index: int


def _cluster(environ: Mapping[str, str]) -> _Cluster | None:
    """What Open MPI or SLURM says of this process."""
    for name, signs, counts, rank in _CLUSTERS:
        count_name = next((key for key in counts if environ.get(key)), "")
        count, index = _number(environ, count_name), _number(environ, rank)
        if count is None or index is None:
            continue
        has_address = all(sign in environ for sign in signs)
        if name == "SLURM" and not has_address:
            continue  # a script or a shell in an allocation: no step of srun
        names = [count_name, rank, *(sign for sign in signs if sign in environ)]
        listed = ", ".join(f"{key}={environ[key]}" for key in names)
        return _Cluster(f"{name} ({listed})", has_address, count, index)
    return None


def _on_a_tpu_pod(environ: Mapping[str, str]) -> Settings | None:
    """Settings where jax can ask a Cloud TPU; jax sets the first when it sees chips."""
    if "TPU_ML_PLATFORM" not in environ:
        return None
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    if workers and "," not in workers and slices == "1":
        return None  # Kubernetes names the workers, and there is one
    if not workers and "TPU_SKIP_MDS_QUERY" in environ:
        return None  # told not to ask the metadata server
    return Settings(f"Cloud TPU ({workers or 'metadata server'}, {slices} slices)")


def _gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of a SLURM task, where jax would choose others.

    jax gives a task the GPU of its number on the node. That is right where each task
    sees all GPUs and there is a task for each; with one task a node it would use one
    GPU, and with one GPU bound to each task it would look for one that is not there.
    """
    if "SLURM_PROCID" not in environ or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None  # the second is the user's word, and jax reads it
    visible = [d for d in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    one_a_node = re.fullmatch(r"1(\(x\d+\))?", tasks) is not None
    if visible and (one_a_node or len(visible) == 1):
        return tuple(range(len(visible)))
    return None


def refuse(verb: str, environ: Mapping[str, str]) -> None:
    """Stops a verb that runs in one process where there are several.

    Raises:
      UserError: there are several.
    """
    found = find(environ)
    if found is None or found.count == 1:
        return
    if found.count is not None or jax.process_count() > 1:
        raise UserError(
            f"`medclip-jax {verb}` runs in one process and would write the same files "
            f"from each of several: found {found.source}. Start it once (srun -n 1 "
            f"medclip-jax {verb} ...), on a machine with one host's devices."
        )
