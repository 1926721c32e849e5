"""The contract of a Store, kept by a folder and by a live S3 server alike."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from fault_proxy import HEAVY, FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray import local as stacks
from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store, StoreUnavailableError

S3 = pytest.param("s3", marks=pytest.mark.s3)


@pytest.fixture(params=["local", S3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    return Store(request.getfixturevalue("s3_uri"))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def s3(s3_uri: str) -> Store:
    return Store(s3_uri)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096], ids=len)
def test_what_was_put_is_read(store: Store, data: bytes):
    store.put("a/b.bin", data)
    assert store.read("a/b.bin") == data


def test_a_put_replaces(store: Store):
    store.put("key", b"a long first value")
    store.put("key", b"second")
    assert store.read("key") == b"second"
    assert store.list() == ["key"]


def test_a_missing_object_is_a_missing_file(store: Store):
    with pytest.raises(FileNotFoundError):
        store.read("none")
    store.put("folder/key", b"")
    with pytest.raises(FileNotFoundError):
        store.read("folder/none")


def test_a_range_ends_where_the_object_does(store: Store):
    store.put("key", b"0123")
    ranges = [(0, 4), (1, 3), (2, 9), (4, 9), (7, 9), (2, 2)]
    assert [store.read_range("key", *r) for r in ranges] == [b"0123", b"12", b"23", b"", b"", b""]
    with pytest.raises(FileNotFoundError):
        store.read_range("none", 0, 1)


def test_exists_says_what_put_and_delete_did(store: Store):
    assert not store.exists("a/b")
    store.put("a/b", b"")
    assert store.exists("a/b")
    assert not store.exists("a/b2")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert store.list() == []


def test_deleting_what_is_not_there_is_fine(store: Store):
    store.put("other", b"1")
    store.delete("none")
    store.delete("a/none")
    assert store.list() == ["other"]


def test_an_empty_store_lists_nothing(store: Store):
    assert store.list() == []
    assert store.list("a/") == []


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["a", "data/part-0", "data/part-1", "data/x/part-2", "database"]),
        ("data", ["data/part-0", "data/part-1", "data/x/part-2", "database"]),
        ("data/", ["data/part-0", "data/part-1", "data/x/part-2"]),
        ("data/part-", ["data/part-0", "data/part-1"]),
        ("data/part-1", ["data/part-1"]),
        ("data/x/", ["data/x/part-2"]),
        ("b", []),
    ],
)
def test_list_is_sorted_and_takes_any_prefix(store: Store, prefix: str, expected: list[str]):
    for key in ["database", "data/x/part-2", "data/part-1", "a", "data/part-0"]:
        store.put(key, b"x")
    assert store.list(prefix) == expected


@pytest.mark.parametrize("key", ["with space", "ünïcode", "a+b", "100%", "a&b=c", "~x", "#1"])
def test_any_key_comes_back_as_it_was(store: Store, key: str):
    store.put(f"d/{key}", key.encode())
    assert store.list() == [f"d/{key}"]
    assert store.read(f"d/{key}") == key.encode()


def test_at_is_the_same_store_further_down(store: Store):
    below = store.at("a/b")
    below.put("c", b"1")
    store.put("c", b"2")
    assert store.read("a/b/c") == b"1"
    assert below.list() == ["c"]
    assert store.at("/a/").at("b/").read("c") == b"1"
    assert store.list("a") == ["a/b/c"]


def test_put_if_absent_writes_once(store: Store):
    assert store.put_if_absent("lease", b"first") is True
    assert store.put_if_absent("lease", b"second") is False
    assert store.read("lease") == b"first"
    assert store.list() == ["lease"]
    store.delete("lease")
    assert store.put_if_absent("lease", b"third") is True
    assert store.read("lease") == b"third"


def test_of_many_writers_one_wins(store: Store):
    turns, barrier = range(3), threading.Barrier(4)

    def write(writer: int) -> list[bool]:
        own = Store(store.uri)
        own.exists("lease")  # so that all of them are connected
        won = []
        for turn in turns:
            barrier.wait(timeout=30)
            won.append(own.put_if_absent(f"lease-{turn}", b"%d" % writer))
        return won

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(write, range(4)))
    for turn in turns:
        winners = [writer for writer in range(4) if won[writer][turn]]
        assert len(winners) == 1
        assert store.read(f"lease-{turn}") == b"%d" % winners[0]


def test_a_reader_never_sees_a_part(store: Store):
    values = [bytes([i]) * 200_000 for i in range(8)]
    store.put("key", values[0])
    seen, done = set(), threading.Event()

    def watch() -> None:
        own = Store(store.uri)
        while not done.is_set():
            seen.add(own.read("key"))

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            for value in values:
                store.put("key", value)
        finally:
            done.set()
        watcher.result(timeout=30)
    assert seen
    assert seen <= set(values)


def test_what_is_not_bytes_is_not_written(store: Store):
    with pytest.raises(TypeError):
        store.put("key", object())  # pyright: ignore[reportArgumentType]
    assert store.list() == []


def test_a_store_that_is_there_passes_the_check(store: Store):
    store.check()
    assert store.list() == []


def test_a_store_travels_as_its_uri(store: Store):
    store.put("key", b"1")  # so that it is connected
    pickled = pickle.dumps(store)
    assert pickle.loads(pickled).read("key") == b"1"
    assert store.uri.encode() in pickled
    assert len(pickled) < 100 + len(store.uri)
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    assert not secret or secret.encode() not in pickled
    assert repr(store) == f"Store({store.uri!r})"


# --- names of stores -----------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["gs://bucket/a", "http://host/a", "S3://bucket", "hdfs://a"])
def test_an_unknown_scheme_is_refused(uri: str):
    with pytest.raises(UserError, match="must be a folder or start with s3://") as caught:
        Store(uri)
    assert caught.value.value == uri


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "s3:///prefix", "s3://bad bucket/a", "s3://b!"])
def test_an_s3_uri_names_a_bucket(uri: str):
    with pytest.raises(UserError, match="must name a bucket"):
        Store(uri)


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("~/a", f"{Path.home()}/a"),
        ("file:///a/b", "/a/b"),
        ("/a/b/", "/a/b"),
        ("s3://b/p/", "s3://b/p"),
        ("s3://b", "s3://b"),
    ],
)
def test_spellings_of_one_place(uri: str, same: str):
    assert Store(uri).uri == same


# --- folders -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "c1", "d.e"]), min_size=1, max_size=3).map("/".join),
        st.binary(max_size=20),
        max_size=6,
    )
)
def test_a_folder_holds_what_a_dictionary_would(tmp_path_factory: pytest.TempPathFactory, objects: dict[str, bytes]):
    # A key cannot be a folder of another one on a file system.
    objects = {k: v for k, v in objects.items() if not any(o.startswith(f"{k}/") for o in objects)}
    store = Store(str(tmp_path_factory.mktemp("store")))
    for key, data in objects.items():
        store.put(key, data)
    assert {key: store.read(key) for key in store.list()} == objects


def test_a_folder_is_made_by_the_first_put_and_not_by_the_check(local: Store):
    deep = local.at("a/b/c")
    deep.check()
    assert not Path(local.uri).exists()
    deep.put("key", b"1")
    assert files(Path(local.uri)) == ["a/b/c/key"]


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_failed_write_leaves_nothing(local: Store, method: str):
    with pytest.raises(TypeError):
        getattr(local, method)("key", "text")
    assert files(Path(local.uri)) == []


def test_a_put_onto_a_folder_leaves_nothing(local: Store):
    local.put("a/b", b"1")
    with pytest.raises(OSError, match="directory"):
        local.put("a", b"2")
    assert local.put_if_absent("a", b"2") is False
    assert files(Path(local.uri)) == ["a/b"]


def test_links_are_followed_and_loops_are_told(local: Store, tmp_path: Path):
    Store(str(tmp_path / "elsewhere")).put("a/key", b"1")
    local.put("own/key", b"2")
    root = Path(local.uri)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "own" / "file").symlink_to(tmp_path / "elsewhere" / "a" / "key")
    (root / "own" / "up").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "none")
    lost: list[str] = []
    assert sorted(local.listing(lost=lost)) == ["linked/a/key", "own/file", "own/key"]
    assert len(lost) == 2


def test_what_a_killed_writer_left_is_not_listed(local: Store):
    local.put("a/key", b"1")
    (Path(local.uri) / "a" / ".tmp-left").write_bytes(b"half")
    assert local.list() == ["a/key"]
    assert local.list("a/") == ["a/key"]


def test_what_a_killed_writer_left_is_removed_after_a_day(local: Store):
    local.put("a/key", b"1")
    young, old = (Path(local.uri) / "a" / name for name in (".tmp-young", ".tmp-old"))
    for left in (young, old):
        left.write_bytes(b"half")
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    Store(local.uri).put("a/key", b"2")
    assert files(Path(local.uri)) == ["a/.tmp-young", "a/key"]


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_full_disk_leaves_what_was_there(local: Store, method: str):
    local.put("key", b"before")
    code = f"""
import resource
from genai_ray.storage import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Store({local.uri!r}).{method}("key", bytes(100_000))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stdout, done.stderr
    assert files(Path(local.uri)) == ["key"]
    assert local.read("key") == b"before"


def test_no_write_in_progress_is_listed(local: Store):
    done = threading.Event()
    listed = set()

    def watch() -> None:
        while not done.is_set():
            listed.update(local.list())

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            for i in range(60):
                local.put(f"d/{i}", bytes(50_000))
                local.put_if_absent(f"d/{i}", b"")
        finally:
            done.set()
        watcher.result(timeout=30)
    keys = {f"d/{i}" for i in range(60)}
    assert listed <= keys
    assert set(files(Path(local.uri))) == keys


def test_files_can_be_read_by_others(local: Store):
    local.put("key", b"1")
    assert (Path(local.uri) / "key").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", [Store.check, lambda s: s.put("key", b"1")], ids=["check", "put"])
def test_a_folder_below_a_file_is_refused(tmp_path: Path, call: Callable[[Store], None]):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="must be a folder that can be written") as caught:
        call(Store(str(tmp_path / "file" / "store")))
    assert caught.value.value == str(tmp_path / "file" / "store")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("call", [Store.check, lambda s: s.put("key", b"1")], ids=["check", "put"])
def test_a_folder_without_rights_is_refused(tmp_path: Path, call: Callable[[Store], None]):
    folder = tmp_path / "store"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="must be a folder that can be written"):
        call(Store(str(folder)))


# --- S3 ------------------------------------------------------------------------------------------


@pytest.fixture
def aws(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Changes the environment, but not before that of the live server is in it."""
    return monkeypatch


def calls(store: Store) -> list[Callable[[], object]]:
    return [
        store.check,
        store.list,
        lambda: store.read("key"),
        lambda: store.put("key", b""),
        lambda: store.put_if_absent("key", b""),
        lambda: store.exists("key"),
        lambda: store.delete("key"),
    ]


@pytest.mark.s3
def test_a_bucket_that_is_not_there(s3_uri: str):
    store = Store(f"s3://no-such-bucket-{uuid4().hex}/a")
    # Not put: SeaweedFS makes the bucket then. That is what `check` is for.
    for call in (store.check, store.list, lambda: store.read("key")):
        with pytest.raises(UserError, match="does not exist"):
            call()


@pytest.mark.s3
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_keys_that_are_refused(s3: Store, aws: pytest.MonkeyPatch, variable: str):
    real = os.environ["AWS_SECRET_ACCESS_KEY"]
    aws.setenv(variable, "wrong-key-of-a-test")
    for call in calls(s3):
        with pytest.raises(UserError, match="refuses the credentials") as caught:
            call()
        assert real not in str(caught.value)
        assert "wrong-key-of-a-test" not in str(caught.value)


@pytest.mark.s3
def test_no_keys(s3: Store, aws: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        aws.delenv(name, raising=False)
    aws.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    aws.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="needs credentials") as caught:
        s3.check()
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


@pytest.mark.s3
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://host.invalid:9"])
def test_an_endpoint_that_is_not_there(s3: Store, aws: pytest.MonkeyPatch, url: str):
    aws.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(UserError, match="must be reachable") as caught:
        s3.check()
    assert "AWS_ENDPOINT_URL" in caught.value.remedy


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL", "127.0.0.1:8333"), ("AWS_PROFILE", "no-such-profile")]
)
def test_settings_that_cannot_be_used(s3: Store, aws: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str):
    aws.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    aws.setenv(name, value)
    with pytest.raises(UserError, match="AWS settings") as caught:
        s3.check()
    assert value in caught.value.rule
    assert name in caught.value.remedy


@pytest.mark.s3
@pytest.mark.slow
def test_a_list_longer_than_a_page(s3: Store):
    keys = [f"many/{i:04d}" for i in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: s3.put(key, b"x"), keys))
    assert s3.list() == keys
    assert s3.list("many/00") == keys[:100]


@pytest.mark.s3
def test_an_object_of_several_parts(s3: Store):
    data = os.urandom(1 << 20) * 65
    s3.put("large", data)
    assert s3.read("large") == data


# --- S3 that fails -------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3_stack: stacks.Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the server, without faults at first; new stores go through it."""
    with FaultProxy(s3_stack.s3_port, {}, seed=0).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.s3
@pytest.mark.slow
def test_heavy_faults_change_nothing(s3_uri: str, proxy: FaultProxy):
    proxy.faults = HEAVY

    def work(writer: int) -> None:
        own, data = Store(f"{s3_uri}/{writer}"), bytes([writer]) * 50_000
        for i in range(6):
            own.put(f"kept-{i}", data)
            own.put(f"gone-{i}", data)
            assert own.read(f"kept-{i}") == data
            assert own.read_range(f"kept-{i}", 10, 20) == data[:10]
            own.delete(f"gone-{i}")
            assert own.exists(f"kept-{i}")
            assert not own.exists(f"gone-{i}")
            with pytest.raises(FileNotFoundError):
                own.read(f"gone-{i}")
            assert own.put_if_absent(f"new-{i}", data)
            assert not own.put_if_absent(f"new-{i}", b"another")
        assert own.sizes("kept") == {f"kept-{i}": 50_000 for i in range(6)}

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    proxy.faults = {}
    store = Store(s3_uri)
    names = [f"{w}/{kind}-{i}" for w in range(16) for kind in ("kept", "new") for i in range(6)]
    assert store.list() == sorted(names)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda k: store.read(k)[0] == int(k.partition("/")[0]), names))
    assert {name for name in HEAVY if not proxy.injected[name]} == set()


@pytest.mark.s3
def test_a_large_object_under_faults(s3_uri: str, proxy: FaultProxy):
    proxy.faults = {"error": 0.2, "reset": 0.2}
    store, data = Store(s3_uri), os.urandom(1 << 20) * 65
    store.put("large", data)
    assert store.read("large") == data
    assert proxy.injected["error"] + proxy.injected["reset"] > 0


@pytest.mark.s3
def test_of_lost_answers_the_own_object_is_known(s3_uri: str, proxy: FaultProxy):
    store = Store(s3_uri)
    proxy.faults = {"lost_answer": 0.5}
    keys = [f"lease-{i}" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: store.put_if_absent(key, b"ours"), keys))
        assert not any(pool.map(lambda key: store.put_if_absent(key, b"theirs"), keys))
        proxy.faults = {}
        # Without a lost answer, equal bytes are another writer's.
        assert not any(pool.map(lambda key: store.put_if_absent(key, b"ours"), keys))
    assert proxy.injected["lost_answer"] > 10
    assert {store.read(key) for key in keys} == {b"ours"}


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["cut_request", "damaged_request", "reset"])
def test_half_a_put_is_no_put(s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: str):
    monkeypatch.setattr("genai_ray.s3._PATIENCE_S", 0.5)
    store = Store(s3_uri)
    store.put("there", b"before")
    proxy.faults = {fault: 1.0}
    for key in ("there", "new"):
        with pytest.raises(StoreUnavailableError):
            store.put(key, os.urandom(500_000))
    proxy.faults = {}
    assert store.sizes() == {"there": 6}
    assert store.read("there") == b"before"


@pytest.mark.s3
@pytest.mark.parametrize(
    "fault", ["error", pytest.param("slow_down", marks=pytest.mark.slow), "reset", "cut_answer", "damaged_answer"]
)
def test_patience_ends(s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: str):
    monkeypatch.setattr("genai_ray.s3._PATIENCE_S", 0.5)
    monkeypatch.setattr("genai_ray.s3._CHECK_PATIENCE_S", 0.5)
    store = Store(s3_uri)
    store.put("key", b"1234")
    proxy.faults = {fault: 1.0}
    with pytest.raises(StoreUnavailableError, match=f"{s3_uri}: failed for 0.5 s") as caught:
        store.read("key")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, IncompleteError)
    assert proxy.injected[fault] > 1
    if fault != "damaged_answer":  # a list carries no checksum
        with pytest.raises(UserError, match="must be reachable"):
            store.check()


@pytest.mark.s3
def test_what_the_server_refuses_is_not_tried_again(s3_uri: str, proxy: FaultProxy):
    proxy.poison = b"poison"
    store = Store(s3_uri)
    with pytest.raises(UserError, match=r"refuses PutObject of poison-1 \(EntityTooLarge"):
        store.put("poison-1", b"1")
    assert proxy.injected == {"poison": 1}


@pytest.mark.s3
@pytest.mark.slow
def test_a_killed_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with stacks.running(tmp_path, with_ray=False) as stack:
        for name, value in stack.environment.items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        store, done = Store(f"s3://{stacks.BUCKET}/a"), threading.Event()

        def work(writer: int) -> int:
            own = store.at(str(writer))
            for i in range(10_000):
                own.put(f"{i}", b"%d" % i)
                assert own.read(f"{i}") == b"%d" % i
                if done.is_set():
                    return i + 1
            raise AssertionError

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(work, i) for i in range(4)]
            try:
                time.sleep(0.5)
                (server,) = (int(pid) for pid in stack.processes)
                os.kill(server, signal.SIGKILL)
                time.sleep(1)
                stacks.up(tmp_path, s3_port=stack.s3_port, with_ray=False)
            finally:
                done.set()
            counts = [writer.result(timeout=60) for writer in writers]
        assert len(store.list()) == sum(counts)
