"""Hosts on this machine: each has a network of its own, processes, a home, a /tmp/ray and an ssh server, as a machine has.

A host is a network namespace at the end of a veth pair, and in it a namespace of processes and one of mounts: an overlay on the
home directory, so that what is written there stays with the host, and memory file systems at /tmp/ray and /dev/shm. All other
files are this machine's: they are the storage that all hosts see. Root makes them, with iproute2, util-linux and OpenSSH.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Hosts", "missing"]

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.77.0"
BRIDGE = "indm-bridge"
JOIN_SECONDS = 180.0
PROGRAMS = ("ip", "unshare", "mount", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
SSH = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
BEGIN = """
set -e
hostname {name}
mount --make-rprivate /
mount -t tmpfs none {scratch}
mkdir {scratch}/upper {scratch}/work
mount -t overlay none -o lowerdir={home},upperdir={scratch}/upper,workdir={scratch}/work {home}
mount --bind {hosts} /etc/hosts
rm -rf {home}/.ray
mkdir -p /tmp/ray /run/sshd
mount -t tmpfs none /tmp/ray
mount -t tmpfs -o size=2g none /dev/shm
exec /usr/sbin/sshd -D -e -o HostKey={key} -o AuthorizedKeysFile={key}.pub -o StrictModes=no -o PidFile=none -o UsePAM=no
"""


def missing() -> str:
    """What is not there that hosts are made of; '' where all is."""
    if os.geteuid():
        return "it makes network namespaces, which only root may; run it as root"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return (
        f"{', '.join(absent)} not found; apt-get install iproute2 util-linux openssh-server openssh-client rsync"
        * bool(absent)
    )


class Hosts:
    """Hosts host0, host1, ..., from the block's beginning to its end.

    Args:
        num: How many; the first is a cluster's head.
        place: A directory for keys and logs.
    """

    def __init__(self, num: int, place: Path) -> None:
        self.place, self.names = place, [f"host{i}" for i in range(num)]
        self.addresses = [f"{NETWORK}.{10 + i}" for i in range(num)]
        self.key = place / "key"
        self._began: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        self.place.mkdir(parents=True, exist_ok=True)
        if why := missing():
            raise RuntimeError(why)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        table = [f"{address} {name}" for address, name in zip(self.addresses, self.names, strict=True)]
        (self.place / "hosts").write_text("\n".join(["127.0.0.1 localhost", *table, ""]))
        _clear()
        try:
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            _run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            for name in self.names:
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._began):
            self.stop(name)
        _run("ip", "link", "delete", BRIDGE, check=False)

    def start(self, name: str) -> None:
        """Plugs a host in and switches it on."""
        space, wire, i = f"indm-{name}", f"indm-{name}", self.names.index(name)
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", wire, "master", BRIDGE, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.addresses[i]}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", f"{NETWORK}.1"),
        ):
            _run("ip", "-n", space, *words)
        scratch = self.place / name
        scratch.mkdir(exist_ok=True)
        script = BEGIN.format(name=name, scratch=scratch, home=Path.home(), hosts=self.place / "hosts", key=self.key)
        spaces = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        with (self.place / f"{name}.log").open("wb") as log:
            self._began[name] = subprocess.Popen(
                ["ip", "netns", "exec", space, *spaces, "bash", "-c", script], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while self.on(name, "true", check=False).returncode:
            if time.monotonic() > deadline or self._began[name].poll() is not None:
                raise RuntimeError(f"{name} does not answer: {(self.place / f'{name}.log').read_text()}")
            time.sleep(0.2)

    def stop(self, name: str) -> None:
        """Pulls a host's plug: all its processes end at once, and its network with them."""
        began = self._began.pop(name)
        began.kill()
        began.wait()
        _run("ip", "netns", "delete", f"indm-{name}", check=False)
        _run("ip", "link", "delete", f"indm-{name}", check=False)

    def unplug(self, name: str, plugged: bool = False) -> None:
        """Cuts a host off from the others, or plugs it in again; its processes go on."""
        _run("ip", "link", "set", f"indm-{name}", "up" if plugged else "down")

    def on(self, name: str, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host, by ssh."""
        to = f"root@{self.addresses[self.names.index(name)]}"
        return _run("ssh", "-i", self.key, *SSH, "-o", "ConnectTimeout=5", to, command, check=check)

    def cluster_yaml(self) -> Path:
        """The project's cluster.yaml for these hosts, with a token of theirs alone. The environment is this one's, which all of
        them see, instead of one that is installed; the package is each host's own copy, as where it is installed; a host lends
        as many CPUs as a small machine has."""
        document: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        (self.place / "token").write_text(secrets.token_hex(32))
        document["file_mounts"]["~/.ray/auth_token"] = str(self.place / "token")
        workers = self.addresses[1:]
        document["provider"] |= {"head_ip": self.addresses[0], "worker_ips": workers}
        document["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.key)}
        document |= {"min_workers": len(workers), "max_workers": len(workers)}
        bashrc = next(command for command in document["setup_commands"] if "bashrc" in command)
        bashrc = bashrc.replace("export PATH=", "export PYTHONPATH=$HOME/indm PATH=")
        document["setup_commands"] = [f"ln -sfn {shlex.quote(sys.prefix)} ~/indm-venv", bashrc]
        for part in ("head_start_ray_commands", "worker_start_ray_commands"):
            document[part] = [
                command.replace("ray start", "ray start --num-cpus=2 --object-store-memory=268435456")
                for command in document[part]
            ]
        file = self.place / "cluster.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    def up(self) -> None:
        """`ray up`, and waits until all hosts are of the cluster."""
        file = str(self.cluster_yaml())
        self.ray("up", "-y", "--no-config-cache", file)
        asked = ("exec", "--no-config-cache", file, "RAY_AUTH_MODE=token ray status")
        deadline = time.monotonic() + JOIN_SECONDS
        while f"{len(self.names)} local.cluster.node" not in (said := self.ray(*asked, check=False).stdout):
            if time.monotonic() > deadline:
                raise RuntimeError(f"of {len(self.names)} hosts not all have joined in {JOIN_SECONDS:.0f} s: {said}")
            time.sleep(3)

    def ray(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray up`, `ray submit` and others, from a machine beside the hosts."""
        command = [str(Path(sys.executable).parent / "ray"), *words]
        variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        return _run(*command, check=check, cwd=ROOT, env=os.environ | variables)


def _clear() -> None:
    """Removes what hosts of a process that was killed have left."""
    for line in _run("ip", "netns", "list").stdout.splitlines():
        if (space := line.split()[0]).startswith("indm-"):
            for number in _run("ip", "netns", "pids", space).stdout.split():
                _run("kill", "-9", number, check=False)
            _run("ip", "netns", "delete", space)
            _run("ip", "link", "delete", space, check=False)
    _run("ip", "link", "delete", BRIDGE, check=False)


def _run(
    *words: str | Path, check: bool = True, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=cwd, env=env, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
