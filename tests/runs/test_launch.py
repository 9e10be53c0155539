"""Start-up under SLURM, with torchrun and without."""

import os
import socket
from collections.abc import Callable

import pytest
import torch
from torch import distributed
from torch.multiprocessing import start_processes

from stillroom.backbone.launch import VARIABLES, adopt_slurm, first_host
from stillroom.runs import Run
from stillroom.runs.run import local_gpu


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The sixth task of a job step on two nodes of four tasks each."""
    for name in [*VARIABLES, *(name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")))]:
        monkeypatch.setenv(name, "")  # restored afterwards, whatever adopt_slurm writes
        monkeypatch.delenv(name)
    task = {"PROCID": 5, "LOCALID": 1, "NTASKS": 8, "JOB_ID": 4711}
    step = {"ID": 2, "NUM_TASKS": 8, "NODELIST": "gpu-[003-004]", "TASKS_PER_NODE": "4(x2)"}
    for name, value in {**task, **{f"STEP_{name}": value for name, value in step.items()}}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return monkeypatch


def test_the_tasks_of_a_step_are_the_processes_of_a_run(slurm: pytest.MonkeyPatch) -> None:
    adopt_slurm()
    port = str(10_000 + (4711 * 16 + 2) % 20_000)
    assert {name: os.environ[name] for name in VARIABLES} == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu-003",
        "MASTER_PORT": port,
    }


def test_torchrun_under_slurm_decides(slurm: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("1", "1", "2", "2", "here", "99"), strict=True):
        slurm.setenv(name, value)
    adopt_slurm()
    assert [os.environ[name] for name in VARIABLES] == ["1", "1", "2", "2", "here", "99"]


def test_one_task_runs_alone(slurm: pytest.MonkeyPatch) -> None:
    slurm.setenv("SLURM_STEP_NUM_TASKS", "1")  # a step of one task in a job of eight
    adopt_slurm()
    assert "WORLD_SIZE" not in os.environ and Run.start("cpu").world_size == 1


def test_a_batch_script_without_srun_runs_alone(slurm: pytest.MonkeyPatch) -> None:
    """SLURM sets the variables of a task for the script too, and SLURM_NTASKS where --ntasks was passed."""
    for name in [name for name in os.environ if name.startswith("SLURM_STEP_")]:
        slurm.delenv(name)
    slurm.setenv("SLURM_PROCID", "0")
    adopt_slurm()
    assert "WORLD_SIZE" not in os.environ and Run.start("cpu").world_size == 1


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu-[003-010,12],cpu1", "gpu-003"), ("a,b", "a"), ("one", "one"), ("n[01,03]", "n01"), ("r[1-2]n[7-9]", "r1n7")],
)
def test_the_first_host_of_a_compressed_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_task_takes_its_gpu_or_the_only_one_that_slurm_shows_it(slurm: pytest.MonkeyPatch) -> None:
    adopt_slurm()
    assert local_gpu(4) == 1 and local_gpu(1) == 0
    slurm.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="pass --nproc-per-node 2 to torchrun, or --ntasks-per-node 2 to SLURM"):
        local_gpu(2)
    slurm.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ValueError, match="there are more processes than GPUs"):
        local_gpu(1)


def test_two_tasks_start_together_without_torchrun(slurm: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {"STEP_NUM_TASKS": 2, "STEP_NODELIST": "localhost", "STEP_TASKS_PER_NODE": 2}

    def task(index: int) -> None:
        os.environ.update({f"SLURM_{name}": str(value) for name, value in step.items()})
        os.environ |= {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index), "MASTER_PORT": str(port)}
        run = Run.start("cpu")
        assert (run.rank, run.world_size) == (index, 2)
        assert run.sum(torch.tensor([index + 1.0])).item() == 3.0
        run.close()

    start_processes(task, nprocs=2, start_method="fork")


def test_processes_that_torchrun_starts_again_do_not_find_the_addresses_of_the_last_ones(
    in_two_processes: Callable[[Callable[[], object]], list], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's store outlives them."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    if not hasattr(store, "list_keys"):
        pytest.skip("this version of torch lists no keys")

    def work() -> float:
        os.environ |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "3"
        run = Run.start("cpu")
        return float(run.sum(torch.ones(1)))

    assert in_two_processes(work) == [2.0, 2.0]
    assert {str(key).split("/")[0] for key in store.list_keys()} == {"attempt-3"}
