"""The embedded stack: own keys, own ports, own processes."""

import os
import socket
import stat
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from genai_ray import local
from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store


@pytest.mark.slow
def test_objects_outlive_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for content in (None, b"kept"):
        with local.running(tmp_path, with_ray=False) as stack:
            for name, value in stack.environment.items():
                monkeypatch.setenv(name, value)
            keys.append((stack.access_key, stack.secret_key))
            store = Store(f"s3://{local.BUCKET}/here")
            if content is None:
                store.put("a", b"kept")
            else:
                assert store.read("a") == content
            pids = [int(pid) for pid in stack.processes]
            assert stack.alive
        assert not any(psutil.pid_exists(pid) for pid in pids)
    assert keys[0] == keys[1]


def test_keys_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    with local.running(tmp_path, with_ray=False) as stack:
        mode = stat.S_IMODE(os.stat(tmp_path / "stack.json").st_mode)
        assert mode == 0o600
        assert stack.secret_key not in repr(stack)
        assert stack.token not in repr(stack)
        ours = [p for p in psutil.net_connections("tcp") if p.status == "LISTEN" and str(p.pid) in stack.processes]
        assert ours
        assert {getattr(p.laddr, "ip", None) for p in ours} == {"127.0.0.1"}


def test_the_proxies_of_a_network_are_not_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example, 127.0.0.1")
    with local.running(tmp_path, with_ray=False) as stack:
        assert stack.environment["no_proxy"] == stack.environment["NO_PROXY"]
        assert stack.environment["no_proxy"].split(",")[:2] == ["intranet.example", "127.0.0.1"]
        with local.environment(stack.environment):
            assert urllib.request.getproxies()["http"] == "http://127.0.0.1:9"
            for name in ("AWS_ENDPOINT_URL", "RAY_API_SERVER_ADDRESS"):
                assert urllib.request.proxy_bypass(urlsplit(stack.environment[name]).netloc)


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--s3-port: got {port}; must be a free port"):
            local.up(tmp_path / "stack", s3_port=port)
    assert not (tmp_path / "stack").exists()


def test_up_twice_is_one_stack(tmp_path: Path) -> None:
    with local.running(tmp_path, with_ray=False) as stack:
        assert local.up(tmp_path, with_ray=False) == stack
    assert not local.down(tmp_path)


def test_a_pid_that_is_another_process_now_is_left_alone(tmp_path: Path) -> None:
    with local.running(tmp_path, with_ray=False):
        pass
    stack = local.find(tmp_path)
    assert stack is not None
    stack.processes[str(os.getpid())] = psutil.Process().create_time() - 100
    local._save(stack)
    assert not local.down(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_job_ends_with_the_exit_code_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "job.py").write_text("import os, sys\nprint('hello')\nexec(sys.argv[1])")
    monkeypatch.chdir(tmp_path / "work")

    def run(code: str) -> int:
        return local.run_command(stack, ["python", "job.py", code])

    with local.running(tmp_path / "stack") as stack, local.environment(stack.environment):
        assert run("pass") == 0
        assert run("sys.exit(4)") == 4
        assert capsys.readouterr().out.count("hello") == 2
        assert run("os.kill(os.getpid(), 9)") == 3
        # A job may be silent for longer than the deadline.
        monkeypatch.setattr(local, "_SILENCE_DEADLINE_S", 0.5)
        assert run("import time; time.sleep(3); print('late')") == 0
        assert "late" in capsys.readouterr().out
        with pytest.raises(IncompleteError, match=r"the jobs API of the stack failed .* see .*ray.log"):
            run(f"import time; os.kill({dashboard_pid(stack)}, 9); time.sleep(60)")


def dashboard_pid(stack: local.Stack) -> int:
    """The dashboard of a stack's Ray head, which answers for the jobs API."""
    for pid in stack.processes:
        for child in psutil.Process(int(pid)).children(recursive=True):
            if "dashboard.py" in " ".join(child.cmdline()):
                return child.pid
    raise AssertionError
