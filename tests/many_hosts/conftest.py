"""A small run, started as one process or several."""

import pytest
from launcher import HERE, Processes


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Folder of compiled programs, so that no run compiles what another did."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def start(tiny_data, compiled):
    """Starts a run in a workdir; see `Processes`."""

    def start(workdir, processes, devices, *more, notes=None, **options):
        argv = [f"--config={HERE / 'small_run.py'}", f"--data={tiny_data}"]
        argv += [f"--workdir={workdir}", *more]
        if notes is not None:
            argv = [str(notes), *argv]
            options["module"] = "logged_train"
        environ = {
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **options.pop("environ", {}),
        }
        logs = workdir.parent / f"{workdir.name}.logs"
        return Processes(argv, processes, devices, logs, environ=environ, **options)

    return start
