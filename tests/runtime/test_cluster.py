"""What the options and the environment say of other processes."""

import importlib.util

import pytest

from medclip_jax.errors import UserError
from medclip_jax.runtime import cluster, topology
from medclip_jax.runtime import mesh as mesh_lib

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NTASKS": "8",  # of the whole allocation
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
PLAIN = {
    "JAX_COORDINATOR_ADDRESS": "node7:9911",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
}
# Open MPI 4; later ones have no address that jax reads.
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}


def numbers(found):
    return found and (found.coordinator, found.count, found.index)


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "options", "expected"),
    [
        ({}, (), None),
        ({}, ("a:1", 2, 0), ("a:1", 2, 0)),
        (PLAIN, (), ("node7:9911", 3, 2)),
        (PLAIN, ("a:1", None, 0), ("a:1", 3, 0)),
        (SLURM, (), (None, 2, 1)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1"}, (), ("a:1", 2, 1)),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (), None),
        # A batch script, without srun: the allocation has 8 tasks, this is no step.
        (without(SLURM, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"), (), None),
        (OMPI, (), (None, 4, 3)),
        (OMPI | SLURM, (), (None, 4, 3)),
        (
            without(OMPI, "OMPI_MCA_orte_hnp_uri") | {"JAX_COORDINATOR_ADDRESS": "a:1"},
            (),
            ("a:1", 4, 3),
        ),
        (TPU, (), (None, None, None)),
        (TPU | {"TPU_WORKER_HOSTNAMES": "w0,w1"}, (), (None, None, None)),
        (TPU | {"TPU_WORKER_HOSTNAMES": "w0"}, (), None),
        (
            TPU | {"TPU_WORKER_HOSTNAMES": "w0", "MEGASCALE_NUM_SLICES": "2"},
            (),
            (None, None, None),
        ),
        (TPU | {"TPU_SKIP_MDS_QUERY": "1"}, (), None),
    ],
)
def test_what_is_found(environ, options, expected):
    assert numbers(cluster.find(environ, *options)) == expected


@pytest.mark.parametrize(
    ("environ", "options", "message"),
    [
        ({}, ("a:1",), r"found --coordinator; missing: --num_processes.*--process_id"),
        ({}, (None, 2, 0), r"missing: --coordinator or JAX_COORDINATOR_ADDRESS \(HOST"),
        (without(PLAIN, "JAX_PROCESS_ID"), (), "missing: --process_id"),
        (PLAIN | {"JAX_NUM_PROCESSES": "two"}, (), "JAX_NUM_PROCESSES=two"),
        (PLAIN | {"JAX_PROCESS_ID": "3"}, (), "index 3 of 3"),
        ({}, ("node1", 2, 0), "'node1'; expected HOST:PORT"),
        (
            without(OMPI, "OMPI_MCA_orte_hnp_uri"),
            (),
            r"found Open MPI \(OMPI_COMM_WORLD_SIZE=4.*missing: --coordinator",
        ),
        (SLURM | {"SLURM_PROCID": "x"}, (), "SLURM_PROCID=x"),
    ],
)
def test_what_cannot_be(environ, options, message):
    with pytest.raises(UserError, match=message):
        cluster.find(environ, *options)


@pytest.mark.parametrize(
    ("visible", "tasks", "expected"),
    [
        ("0,1,2,3", "1(x2)", (0, 1, 2, 3)),  # a task a node takes all of its GPUs
        ("0,1,2,3", "4(x2)", None),  # a task a GPU, all seen: jax counts right
        ("2", "4(x2)", (0,)),  # a task a GPU, each bound to its own
        ("", "1(x2)", None),
    ],
)
def test_gpus_of_a_slurm_task(visible, tasks, expected):
    environ = SLURM | {"CUDA_VISIBLE_DEVICES": visible}
    environ["SLURM_STEP_TASKS_PER_NODE"] = tasks
    assert cluster.find(environ).gpus == expected
    chosen = cluster.find(environ | {"JAX_LOCAL_DEVICE_IDS": "1"})
    assert chosen.gpus is None


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_verbs_of_one_process_refuse_several(verb, tmp_path, monkeypatch):
    module = importlib.import_module(f"medclip_jax.{verb}")
    argv = [f"--workdir={tmp_path}", f"--data={tmp_path}", f"--out={tmp_path / 'new'}"]
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"{verb}` runs in one process.*found SLURM"):
        module.main(argv)
    # One task is one process, and the next thing is missed.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with pytest.raises(UserError, match="no workdir|is not there|prepare"):
        module.main(argv)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install '.[tpu]'",
)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("v5p:4x4x4", {"data": -1}),
        ("v5p:4x4x4", {"data": -1, "fsdp": 4}),
        ("v5e:4x4", {"data": -1}),
        ("v5e:4x4", {"data": 2, "tensor": 8}),
    ],
)
def test_the_hosts_of_a_pod_read_every_part(name, sizes):
    """Parts of a host need not be neighbours: the mesh follows the chips' network."""
    mesh = topology.parse(name).mesh({"fsdp": 1, "tensor": 1, **sizes})
    hosts = {device.process_index for device in mesh.devices.flatten()}
    parts = [mesh_lib.batch_parts(mesh, host)[0] for host in sorted(hosts)]
    of = mesh_lib.batch_parts(mesh, 0)[1]
    assert of == mesh.shape["data"] * mesh.shape["fsdp"]
    assert {part for host in parts for part in host} == set(range(of))
    if "tensor" not in sizes:
        assert sum(map(len, parts)) == of, "two hosts read the same rows"
        assert any(part[-1] - part[0] >= len(part) for part in parts)
