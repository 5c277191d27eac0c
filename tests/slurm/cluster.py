"""A real two-node Slurm on one host, on ports and folders of its own. Needs root, slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
MinJobAge=300
KillWait=5
SlurmctldTimeout=60
SlurmdTimeout=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs={cpus}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
"""


def lacking() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else None


def free_ports() -> tuple[int, int, int]:
    """A free port, and two free ones in a row."""
    for base in range(17800, 18800, 10):
        ports = (base, base + 1, base + 2)
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return ports
    raise RuntimeError("no free ports for a test cluster")


class Cluster:
    """Starts on entry, is gone on exit. `env` is the environment in which Slurm's commands find it."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder, self.cpus = folder, cpus
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        control, first, second = free_ports()
        host = socket.gethostname().split(".")[0]
        (self.folder / "state").mkdir(parents=True)
        munge = self.folder / "munge.socket"
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        text = CONF.format(
            host=host,
            port=control,
            first=first,
            second=second,
            folder=self.folder,
            munge=munge,
            cpus=self.cpus,
        )
        (self.folder / "slurm.conf").write_text(text)
        files = {"key": key, "socket": munge, "pid": "munged.pid", "log": "munged.log", "seed": "munged.seed"}
        options = [f"--{o}-file={self.folder / f}" for o, f in files.items() if o != "socket"]
        self._start("munged", "--foreground", "--force", f"--socket={munge}", *options)
        self.wait(munge.exists, 20, "munge")
        self._start("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        self.wait(
            lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).stdout.strip() == "2",
            60,
            "nodes",
        )
        return self

    def _start(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}{len(self.daemons)}.out", "wb")  # noqa: SIM115
        self.daemons.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log))

    def __exit__(self, *error: object) -> None:
        self.run("scancel", "--me", check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str, check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
        """A command in the cluster's environment."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=600, **more)  # type: ignore[call-overload]
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done

    def queue(self) -> dict[str, str]:
        """Jobs in the queue."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i %T").stdout.split("\n")
        return dict(line.split() for line in lines if line.strip())

    def idle(self, seconds: float = 300) -> None:
        """Wait until the queue is empty."""
        self.wait(lambda: not self.queue(), seconds, "an empty queue")

    def wait(self, condition, seconds: float, what: str) -> None:
        """Wait for a condition; a failure shows the logs' ends."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(
                    f"{p}: {p.read_text(errors='replace')[-1500:]}" for p in self.folder.glob("*.log")
                )
                raise AssertionError(f"no {what} after {seconds} s\n{logs}")
            time.sleep(0.5)
